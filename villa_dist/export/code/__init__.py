"""What becomes `modeling_villa.py` in an exported folder: one module a kind of towers, bundled with what it uses."""
