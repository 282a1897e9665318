"""The constants of the published data sets, for each size of image."""

SIZES = {"CIFAR-10-C": 32, "Tiny-ImageNet-C": 64, "ImageNet-C": 224}

# One entry a severity.  The comments name what a tuple holds.
CONSTANTS: dict[str, dict[str, tuple]] = {
  "gaussian_noise": {  # standard deviation
    "CIFAR-10-C": (0.04, 0.06, 0.08, 0.09, 0.10),
    "Tiny-ImageNet-C": (0.04, 0.08, 0.12, 0.15, 0.18),
    "ImageNet-C": (0.08, 0.12, 0.18, 0.26, 0.38),
  },
  "shot_noise": {  # photons of a white pixel
    "CIFAR-10-C": (500, 250, 100, 75, 50),
    "Tiny-ImageNet-C": (250, 100, 50, 30, 15),
    "ImageNet-C": (60, 25, 12, 5, 3),
  },
  "impulse_noise": {  # share of values that turn black or white
    "CIFAR-10-C": (0.01, 0.02, 0.03, 0.05, 0.07),
    "Tiny-ImageNet-C": (0.01, 0.02, 0.05, 0.08, 0.14),
    "ImageNet-C": (0.03, 0.06, 0.09, 0.17, 0.27),
  },
  "defocus_blur": {  # radius of the disk, sigma that smooths its edge
    "CIFAR-10-C": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "Tiny-ImageNet-C": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "ImageNet-C": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
  },
  "glass_blur": {  # sigma, how far pixels go, passes
    "CIFAR-10-C": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "Tiny-ImageNet-C": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "ImageNet-C": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
  },
  "motion_blur": {  # radius, sigma
    "CIFAR-10-C": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "Tiny-ImageNet-C": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "ImageNet-C": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
  },
  "zoom_blur": {  # zoom factors: from 1 to the first number, in steps of the second
    "CIFAR-10-C": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "Tiny-ImageNet-C": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "ImageNet-C": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
  },
  "snow": {  # mean and deviation of the flakes, zoom, threshold, radius, sigma, share of the image
    "CIFAR-10-C": (
      (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
      (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
      (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
      (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
      (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "Tiny-ImageNet-C": (
      (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
      (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
      (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
      (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
      (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "ImageNet-C": (
      (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
      (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
      (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
      (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
      (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
  },
  "frost": {  # weights of the image and of the ice
    "CIFAR-10-C": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "Tiny-ImageNet-C": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    "ImageNet-C": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
  },
  "fog": {  # thickness, how much smoother it is at twice the scale
    "CIFAR-10-C": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "Tiny-ImageNet-C": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    "ImageNet-C": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
  },
  "brightness": {  # what is added to the value in HSV
    "CIFAR-10-C": (0.05, 0.1, 0.15, 0.2, 0.3),
    "Tiny-ImageNet-C": (0.1, 0.2, 0.3, 0.4, 0.5),
    "ImageNet-C": (0.1, 0.2, 0.3, 0.4, 0.5),
  },
  "contrast": {  # factor of the distance from the mean
    "CIFAR-10-C": (0.75, 0.5, 0.4, 0.3, 0.15),
    "Tiny-ImageNet-C": (0.4, 0.3, 0.2, 0.1, 0.05),
    "ImageNet-C": (0.4, 0.3, 0.2, 0.1, 0.05),
  },
  "elastic_transform": {  # height and sigma of the waves, shift of the corners; shares of the side
    "CIFAR-10-C": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05))
    + ((0.1, 0.03, 0.03),),
    "Tiny-ImageNet-C": ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03))
    + ((0.16, 0.03, 0.02),),
    # Published for a side of 244 and used at 224.
    "ImageNet-C": tuple(
      tuple(244 / 224 * share for share in shares)
      for shares in (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
      )
    ),
  },
  "pixelate": {  # size of the coarse image, as a share
    "CIFAR-10-C": (0.95, 0.9, 0.85, 0.75, 0.65),
    "Tiny-ImageNet-C": (0.9, 0.8, 0.7, 0.6, 0.5),
    "ImageNet-C": (0.6, 0.5, 0.4, 0.3, 0.25),
  },
  "jpeg_compression": {  # quality
    "CIFAR-10-C": (80, 65, 58, 50, 40),
    "Tiny-ImageNet-C": (65, 58, 50, 40, 25),
    "ImageNet-C": (25, 18, 15, 10, 7),
  },
}
