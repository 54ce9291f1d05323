"""Instance representations: encode labels to maps, decode maps to labels; torch-free."""
