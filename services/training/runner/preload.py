"""What the forkserver imports so that no child has to. Nothing in here may ask CUDA anything, or forked children couldn't use it: no bitsandbytes, no peft."""

import accelerate
import msgspec
import torch
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama
import transformers.tokenization_utils_tokenizers

from services.training.runner import entry
from services.training.trainers import llm

__all__ = ["accelerate", "entry", "llm", "msgspec", "torch", "transformers"]
