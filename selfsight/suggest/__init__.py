"""A recipe that fits a folder of images and a machine."""
