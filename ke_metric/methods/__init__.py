"""Methods: what a child takes from its parent. Imports layer 0 and the split room."""
