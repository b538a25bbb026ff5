"""Synthetic images: a conditional GAN, and measures of its images."""
