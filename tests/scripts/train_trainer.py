"""Trainer of Hugging Face with accumulation, evaluation and checkpoints: 22 sequences of 8 tokens, 2 epochs."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import wattbench

torch.manual_seed(0)
sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
data = [{"input_ids": (ids := torch.randint(50, (8,))), "labels": ids} for _ in range(22)]
arguments = TrainingArguments(
    "checkpoints",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    num_train_epochs=2,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=2,
    save_steps=3,
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
    include_num_input_tokens_seen="all" if "--count-tokens" in sys.argv else "no",
    torch_compile="--compile" in sys.argv,
)
trainer = Trainer(
    model, arguments, train_dataset=data, eval_dataset=data[:4], callbacks=[wattbench.HuggingFaceCallback()]
)
trainer.train(resume_from_checkpoint=sys.argv[2] if sys.argv[1:2] == ["--resume"] else None)
print("stated", trainer.state.global_step, trainer.state.num_input_tokens_seen)
