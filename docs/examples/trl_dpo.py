#!/usr/bin/env python3
"""A trainer for jobs of the recipe `external`: DPO by TRL, with a LoRA adapter or all parameters.

    [trainers]                                    # config.toml
    trl-dpo = ["python3", "docs/examples/trl_dpo.py", "{job}"]

Options of the job (`"options": {…}`): epochs, batch_size, learning_rate, beta, max_length, save_steps, lora_rank (0 = all
parameters).
Needs torch, transformers, trl, peft and datasets; tried with trl 1.16.0, transformers 5.24.0 and peft 0.21.2 on a CPU.
"""

import json
import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Curves(TrainerCallback):
    """One JSON line for each log: instructd makes curves of lines with a `step`."""

    def on_log(self, args, state, control, logs=None, **_):
        numbers = {k.replace("/", "_"): v for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        print(json.dumps({"step": state.global_step, "total_steps": state.max_steps, **numbers}), flush=True)


def main():
    job = json.load(open(sys.argv[1]))
    options = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-5, "beta": 0.1, "max_length": 512, "lora_rank": 8,
               "save_steps": 50}
    unknown = set(job["options"]) - set(options)
    if unknown:
        sys.exit(f"options: {', '.join(sorted(unknown))} not known; there are {', '.join(options)}")
    options |= job["options"]
    data = load_dataset("parquet", data_files=job["data"]["comparisons"]["train"]["parquet"], split="train",
                        cache_dir=job["checkpoint_dir"] + "/datasets")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if tokenizer.chat_template is None:
        # As instructd writes prompts of a model without a template: their texts, one per line.
        tokenizer.chat_template = "{{ messages | map(attribute='content') | join('\n') }}"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    lora = None
    if options["lora_rank"] > 0:
        rank = options["lora_rank"]
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    config = DPOConfig(
        output_dir=job["checkpoint_dir"], seed=job["seed"], num_train_epochs=options["epochs"],
        per_device_train_batch_size=options["batch_size"], learning_rate=options["learning_rate"], beta=options["beta"],
        max_length=options["max_length"], logging_steps=1, save_steps=options["save_steps"], save_total_limit=2, report_to="none",
        use_cpu=not torch.cuda.is_available(), bf16=torch.cuda.is_available(), gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora,
                         callbacks=[Curves()])
    # Its own checkpoints are in checkpoint_dir; a job that is resumed goes on from the newest one.
    trainer.train(resume_from_checkpoint=has_checkpoint(job))
    trainer.save_model(job["output_dir"])


def has_checkpoint(job):
    import pathlib

    return job["resume"] and any(pathlib.Path(job["checkpoint_dir"]).glob("checkpoint-*"))


if __name__ == "__main__":
    main()
