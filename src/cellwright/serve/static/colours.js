// Colours of objects. Classes: the palette of Okabe and Ito, in the order of cellwright's pictures (report/colours.py).
// Scores and sizes: cividis. Both are safe for colour blindness; automatic and manual objects differ by line style.

export const CLASS_COLOURS = ["#f0e442", "#56b4e9", "#ff7f2a", "#2ed3a2", "#e69f00", "#e08fc0", "#6aa8ff"];
const CIVIDIS = ["#00224e", "#1a386f", "#434e6c", "#61646f", "#7d7c78", "#9b9476", "#bbae6c", "#dcc95c", "#fee838"];
// Dark ends are lifted: outlines lie on black.
const LIFTED = ["#3f6fd8", "#5e83c9", "#7d97bb", "#98a8ac", "#b3b89b", "#cfc986", "#e5d66c", "#f6e24f", "#fff04a"];
export const ID_COLOURS = [
  "#f0e442",
  "#56b4e9",
  "#ff7f2a",
  "#2ed3a2",
  "#e69f00",
  "#e08fc0",
  "#6aa8ff",
  "#b5e853",
  "#ff9d9d",
  "#7fe0f0",
  "#c9a7ff",
  "#ffd08a",
];

/** "#rrggbb" as the number that a Uint32Array of canvas pixels holds (little-endian RGBA), opaque. */
export function packed(hex) {
  const value = parseInt(hex.slice(1), 16);
  return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

function ramp(stops) {
  const channels = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1),
      low = Math.min(Math.floor(place), stops.length - 2),
      part = place - low;
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(channels[low][c] * (1 - part) + channels[low + 1][c] * part));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

export const RAMP = ramp(LIFTED);
export const RAMP_CSS = `linear-gradient(90deg, ${LIFTED.join(", ")})`;
export const DARK_RAMP = ramp(CIVIDIS);
export const CLASS_PACKED = CLASS_COLOURS.map(packed);
export const ID_PACKED = ID_COLOURS.map(packed);

export const cssOf = (value) => `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
