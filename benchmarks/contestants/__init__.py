"""The servers that are measured: one small file each, written as their manuals suggest."""
