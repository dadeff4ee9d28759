"""Image files: read finds and reads them, tiff decodes TIFF, OME-TIFF and ImageJ TIFF."""
