"""Images from wherever a user has them: folders, tensors, data sets, loaders, and functions that draw samples."""
