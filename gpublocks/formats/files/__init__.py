"""Files of all formats: mapped, under way, packed, confined to a folder. Touches local files."""
