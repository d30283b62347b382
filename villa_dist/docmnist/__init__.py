"""DocMNIST: synthetic image-text samples whose region-attribute pairs are known (ViLLA, ICCV 2023, section 4.1)."""
