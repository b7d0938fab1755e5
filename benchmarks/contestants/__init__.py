"""The servers that are measured, one small file each, as their own manuals would have them."""
