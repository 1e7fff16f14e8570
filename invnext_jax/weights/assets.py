"""The weights that this package ships."""

from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"


def resolve(path: str) -> str:
    """The path itself, or for "assets" that of the tiny image teacher of the embedded world."""
    return str(ASSETS / "siglip2_tiny_world.safetensors") if path == "assets" else path
