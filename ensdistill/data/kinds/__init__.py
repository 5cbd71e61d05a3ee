"""The kinds of containers that samples come in, one file each; importing this package registers them."""

from ensdistill.data.kinds import arrays, fields, images, tables, texts

__all__ = ["arrays", "fields", "images", "tables", "texts"]
