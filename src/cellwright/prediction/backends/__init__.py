"""What runs a network; `load` chooses it."""

from typing import Literal

Backend = Literal["auto", "openvino", "openvino-int8", "openvino-bf16", "torch"]
