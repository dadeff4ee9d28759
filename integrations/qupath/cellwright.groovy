/**
 * Segments the open image with cellwright's command line, and adds what it finds as detections with measurements.
 *
 * In QuPath: Automate > Script editor, set the lines below, Run. The image must be a file of this computer, as it was
 * opened: not cropped, rotated or transformed. With selected annotations, only objects in these are kept. cellwright
 * reads the file itself, so a large slide is segmented tile by tile.
 */
import java.util.zip.GZIPInputStream
import qupath.lib.io.PathIO

def command = "cellwright" // or its full path, such as "/home/me/env/bin/cellwright"
def model = "nuclei" // or nuclei-stained, a model folder, a run
def options = [] // for example ["--diameter", "30", "--channel", "DAPI", "--z", "max"]
def replaceDetections = false // true: first remove all detections of the image, such as those of an earlier run

// The file of the image.
def server = getCurrentServer()
def uris = server.getURIs()
if (uris.size() != 1 || uris.first().getScheme() != "file")
    throw new IllegalStateException("cellwright needs an image that is one file of this computer, got " + uris)
if (server.getClass().getSimpleName() =~ /Cropped|Rotated|Transformed|Affine|Concatenat|Deconvolution/)
    throw new IllegalStateException("cellwright would see another image than this one: " + server.getServerType())
def image = new File(uris.first())
def folder = File.createTempDir("cellwright_", "")
def out = new File(folder, "result")
def words = [command, "predict", image.getPath(), "--model", model, "--save", "geojson", "--out", out.getPath()]
words += options.collect { it.toString() }

// Selected annotations are the regions of interest.
def selected = getSelectedObjects().findAll { it.isAnnotation() && it.hasROI() }
if (selected) {
    def roi = new File(folder, "roi.geojson")
    PathIO.exportObjectsAsGeoJSON(roi, selected, PathIO.GeoJsonExportOptions.FEATURE_COLLECTION)
    words += ["--roi", roi.getPath()]
}

println words.join(" ")
def process = new ProcessBuilder(words).redirectErrorStream(true).start()
process.getInputStream().eachLine { println it }
def code = process.waitFor()
if (code != 0)
    throw new IllegalStateException("cellwright ended with code " + code + "; see what it said above")

// One file of outlines: of an image, or of a slide that was segmented tile by tile.
def files = []
out.eachFileRecurse { if (it.getName() ==~ /.*\.geojson(\.gz)?/) files << it }
if (files.size() != 1)
    throw new IllegalStateException("expected the outlines of one image, got " + files)
def stream = new FileInputStream(files[0])
if (files[0].getName().endsWith(".gz"))
    stream = new GZIPInputStream(stream)
def objects = PathIO.readObjectsFromGeoJSON(stream) // closes it
def outside = objects.find {
    def roi = it.getROI()
    roi.getBoundsX() + roi.getBoundsWidth() > server.getWidth() || roi.getBoundsY() + roi.getBoundsHeight() > server.getHeight()
}
if (outside != null)
    throw new IllegalStateException("an object lies outside of the image: cellwright saw another one in " + image)
if (replaceDetections)
    clearDetections()
addObjects(objects)
fireHierarchyUpdate()
println objects.size() + " objects; files: " + out
