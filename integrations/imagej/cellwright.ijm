// Segments the open image with cellwright's command line, and shows what it finds: ROIs in the ROI Manager, a label
// image, and a table of measurements. For ImageJ 1.53 or newer, and Fiji.
//
// Plugins > Macros > Run...; to keep it in the menu, copy this file to the folder plugins/ under the name
// Cellwright_.ijm. The plane that is shown is segmented; a selection is ignored, and lost.
//
// From another macro: runMacro("cellwright.ijm", "model=nuclei\ndiameter=30\nchannel=DAPI\ncommand=/path/to/cellwright")
// with any of these lines.

requires("1.53a");

function value(lines, name, otherwise) {
    parts = split(lines, "\n");
    for (i = 0; i < parts.length; i++) {
        if (startsWith(parts[i], name + "=")) return substring(parts[i], lengthOf(name) + 1);
    }
    return otherwise;
}

if (nImages == 0) exit("cellwright: open an image first");
given = getArgument();
command = value(given, "command", call("ij.Prefs.get", "cellwright.command", "cellwright"));
model = value(given, "model", "nuclei");
diameter = value(given, "diameter", "");
channel = value(given, "channel", "");
if (given == "") {
    Dialog.create("cellwright");
    Dialog.addString("Command", command, 40);
    Dialog.addString("Model", model, 40);
    Dialog.addString("Diameter of the objects in pixels, empty: estimated", diameter, 10);
    Dialog.addString("Channel, name or number from 0, empty: the only one", channel, 10);
    Dialog.show();
    command = Dialog.getString();
    model = Dialog.getString();
    diameter = Dialog.getString();
    channel = Dialog.getString();
    call("ij.Prefs.set", "cellwright.command", command);
}

// The plane that is shown, as a file of its own.
id = getImageID();
title = getTitle();
folder = getDirectory("temp") + "cellwright_" + d2s(getTime(), 0) + File.separator;
File.makeDirectory(folder);
out = folder + "result" + File.separator;
Stack.getDimensions(width, height, channels, slices, frames);
Stack.getPosition(c, z, t);
run("Select None");
if (channels * slices * frames == 1) options = "";
else if (Stack.isHyperstack) options = " duplicate channels=1-" + channels + " slices=" + z + " frames=" + t;
else options = " duplicate range=" + getSliceNumber() + "-" + getSliceNumber();
run("Duplicate...", "title=image" + options);
saveAs("Tiff", folder + "image.tif");
close();
selectImage(id);

// Options that are not given are replaced by defaults, as every place must be filled.
of_diameter = "--device=auto";
if (diameter != "") of_diameter = "--diameter=" + diameter;
of_channel = "--backend=auto";
if (channel != "") of_channel = "--channel=" + channel;
showStatus("cellwright...");
if (startsWith(getInfo("os.name"), "Windows"))
    said = exec("cmd", "/c", command, "predict", folder + "image.tif", "--model=" + model, "--out=" + out, of_diameter,
        of_channel, "--quiet", "2>&1");
else
    said = exec("sh", "-c", "exec \"$0\" \"$@\" 2>&1", command, "predict", folder + "image.tif", "--model=" + model,
        "--out=" + out, of_diameter, of_channel, "--quiet");
showStatus("");
if (!File.exists(out + "image_masks.tif"))
    exit("cellwright did not segment this image. It said:\n \n" + said);

// What it found.
if (File.exists(out + "image_rois.zip")) roiManager("Open", out + "image_rois.zip");
if (File.exists(out + "image_measurements.csv")) {
    Table.open(out + "image_measurements.csv");
    Table.rename("image_measurements.csv", title + " measurements");
}
open(out + "image_masks.tif");
rename(title + " labels");
getStatistics(area, mean, min, max);
setMinAndMax(0, maxOf(max, 1));
selectImage(id);
if (roiManager("count") > 0) roiManager("Show All without labels");
print("cellwright: " + max + " objects in " + title + ", " + roiManager("count") + " ROIs; files: " + out);
