#!/usr/bin/env python3
"""One PPO iteration of TRL (trl.experimental.ppo), timed, for comparison with `cargo bench --bench train`.

Usage: train_trl.py DIR [RESULTS.jsonl]
DIR is what `cargo bench --bench train` prepared: DIR/policy and DIR/reward, SmolLM2-135M in f32. The work is that
of the bench's first row: batch 16, 32-token queries, 48-token responses, 4 PPO epochs of one minibatch, full
parameters, separate critic, no gradient clipping (this trainer has none). Where RESULTS.jsonl, the bench's output,
is given, ratios to it are printed. Needs torch, transformers and trl==1.9.2.
"""

import json
import resource
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

BATCH, QUERY, RESPONSE, EPOCHS, ITERATIONS = 16, 32, 48, 4, 2


class Clock(TrainerCallback):
    """Wall and processor seconds of each iteration."""

    def __init__(self):
        self.last, self.iterations = None, []
        self.last_cpu, self.cpu = None, []

    def on_train_begin(self, *_, **__):
        self.last, self.last_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_, **__):
        now, cpu = time.perf_counter(), time.process_time()
        self.iterations.append(now - self.last)
        self.cpu.append(cpu - self.last_cpu)
        self.last, self.last_cpu = now, cpu


def main():
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/policy")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    load = dict(dtype=torch.float32)
    policy = AutoModelForCausalLM.from_pretrained(f"{folder}/policy", **load)
    reference = AutoModelForCausalLM.from_pretrained(f"{folder}/policy", **load)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward", num_labels=1, **load) for _ in range(2)
    )
    texts = [json.loads(line)["prompt"] for line in open(f"{folder}/prompts.jsonl")]
    rows = [{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"][-QUERY:]} for text in texts]
    assert all(len(row["input_ids"]) == QUERY for row in rows), "every query has 32 tokens"

    seconds = {"generation": []}
    generate = ppo_trainer.batch_generation

    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = generate(*args, **kwargs)
        seconds["generation"].append(time.perf_counter() - start)
        return result

    ppo_trainer.batch_generation = timed
    clock = Clock()
    args = PPOConfig(
        output_dir=f"{folder}/trl",
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=BATCH,
        response_length=RESPONSE,
        total_episodes=BATCH * ITERATIONS,
        learning_rate=1e-5,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        num_sample_generations=0,
        save_strategy="no",
        seed=1,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        callbacks=[clock],
    )
    trainer.train()
    result = {
        "what": "trl ppo full",
        "seconds": round(clock.iterations[-1], 2),
        "cpu_seconds": round(clock.cpu[-1], 2),
        "generation": round(seconds["generation"][-1], 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))
    if len(sys.argv) > 2:
        for line in open(sys.argv[2]):
            ours = json.loads(line)
            if ours["what"].startswith("ppo"):
                speed, cpu = (result[key] / ours[key] for key in ("seconds", "cpu_seconds"))
                memory = ours["peak_mib"] / result["peak_mib"]
                print(f"{ours['what']:42} {speed:5.2f} times TRL's speed ({cpu:.2f} by processor time), {memory:.2f} of its memory")


if __name__ == "__main__":
    main()
