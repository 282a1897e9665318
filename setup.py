"""Installs urkle_tf."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent


def read(path: str) -> str:
  return (HERE / path).read_text(encoding="utf-8")


def version() -> str:
  # Reads the file, because importing the package needs packages that are not installed yet.
  return re.search(r'__version__ = "(.+?)"', read("urkle_tf/__init__.py"))[1]


# Lower bounds are the oldest releases that we tried. Upper bounds exclude the next release that may
# break something. The bounds of Keras come from networks/keras_private.py: private parts of Keras
# may move with any release. TensorFlow 2.19.1 is the last release with TPU support. On TPU hosts,
# the launcher installs tensorflow-tpu==2.19.1 instead of tensorflow.
INSTALL_REQUIRES = [
  "absl-py>=2.1,<3",
  "importlib_resources>=6,<8",  # tensorflow-datasets needs it, but does not require it
  "keras>=3.15,<3.16",
  "keras-cv>=0.9,<0.10",
  "matplotlib>=3.9,<4",
  "numpy>=2.1,<3",
  "pillow>=10.4,<14",
  "scikit-learn>=1.5,<2",
  "scipy>=1.11,<2",  # comes with scikit-learn
  "tensorboard>=2.19,<3",
  "tensorflow>=2.19,<2.22",
  "tensorflow-datasets>=4.9.7,<5",
  # tensorflow-datasets accepts any, but later ones fail with the protobuf 5 of TensorFlow 2.19.
  "tensorflow-metadata>=1.17.3,<1.18",
  "tensorflow-probability[tf]>=0.25,<0.26",  # [tf] brings tf_keras, which .distributions needs
  "tqdm>=4.62.3,<5",
]

# Independent attacks, to compare with in tests and audits. The package itself does not use them.
FOOLBOX = "foolbox>=3.3.4,<4"
RUFF = "ruff>=0.17,<0.18"  # minor releases of a formatter change its output

EXTRAS_REQUIRE = {
  "test": [
    FOOLBOX,  # small. Tests that need more are skipped if "attacks" is not installed
    "hypothesis>=6.100,<7",
    "mypy>=2,<3",
    "pytest>=8.2,<10",
    "pytest-timeout>=2.3.1,<3",
    "pyyaml>=6,<7",  # reads launch/kubernetes.yaml
    "pytest-xdist>=3.8,<4",  # launch/test.sh runs test files in parallel
    RUFF,
    "setuptools>=70.1",  # builds the wheel that tests/packaging_test.py inspects
  ],
  "gpu": ["tensorflow[and-cuda]>=2.19,<2.22"],  # NVIDIA's libraries, about 2.5 GB
  "docs": [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings[python]>=1,<2",
    RUFF,  # formats signatures
  ],
  "notebooks": [  # runs examples/notebooks
    "ipykernel>=7,<8",
    "nbclient>=0.10.2,<0.12",
  ],
  "hub": [
    "keras-hub>=0.32,<0.33",  # image encoders for robustify
  ],
  "attacks": [
    FOOLBOX,
    "adversarial-robustness-toolbox>=1.20.1,<2",
    "statsmodels>=0.14,<1",  # imported by its certificates
  ],
  "judge": [
    "pyautoattack>=0.2,<0.3",  # the official AutoAttack, for tools/official_autoattack.py
    "torch>=2.6,<3",
  ],
}

setuptools.setup(
  name="urkle_tf",
  version=version(),
  description="Robust image encoders, trained without labels, in TensorFlow and Keras 3",
  long_description=read("README.md"),
  long_description_content_type="text/markdown",
  author="The urkle_tf authors",
  license="Apache-2.0",
  python_requires=">=3.11,<3.14",
  packages=setuptools.find_packages(include=["urkle_tf", "urkle_tf.*"]),
  package_data={
    "urkle_tf": ["py.typed", "*.pyi", "networks/presets/*/*", "evaluation/report/*.css"]
  },
  zip_safe=False,
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
)
