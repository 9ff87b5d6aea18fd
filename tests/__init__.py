"""A package and no mere folder: another project's wheel may bring a package of this name."""
