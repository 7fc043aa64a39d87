#!/usr/bin/env python3
"""What a newcomer sees of a model: short questions in English and Chinese, memory, and the time to the first token.

    benches/default_model.py --instructd BIN NAME=MODEL… > result.jsonl

Each model answers the same 22 questions in each language, greedily, through the chat route. An answer counts when it
contains one of the accepted words. Prints one JSON object for each model, with every answer.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# (English, Chinese, accepted words in English, accepted words in Chinese)
QUESTIONS = [
    ("What is the capital of France?", "法国的首都是哪里？", "paris", "巴黎"),
    ("What is the capital of Japan?", "日本的首都是哪里？", "tokyo", "东京"),
    ("What is the capital of Egypt?", "埃及的首都是哪里？", "cairo", "开罗"),
    ("What is the largest planet of the solar system?", "太阳系最大的行星是哪一颗？", "jupiter", "木星"),
    ("Which planet do we live on?", "我们生活在哪颗行星上？", "earth", "地球"),
    ("How many days are there in a week?", "一个星期有几天？", "seven|7", "七|7"),
    ("How many minutes are there in an hour?", "一小时有多少分钟？", "sixty|60", "六十|60"),
    ("What is 2 + 3?", "2 + 3 等于多少？", "5|five", "5|五"),
    ("What is 7 times 8?", "7 乘以 8 等于多少？", "56", "56|五十六"),
    ("What is 100 minus 1?", "100 减 1 等于多少？", "99", "99|九十九"),
    ("What is the chemical formula of water?", "水的化学式是什么？", "h2o|h₂o", "h2o|h₂o"),
    ("At how many degrees Celsius does water boil at sea level?", "水在标准大气压下多少摄氏度沸腾？", "100", "100|一百"),
    ("Who wrote Romeo and Juliet?", "《罗密欧与朱丽叶》的作者是谁？", "shakespeare", "莎士比亚"),
    ("Who developed the theory of relativity?", "相对论是谁提出的？", "einstein", "爱因斯坦"),
    ("Which language is mainly spoken in Brazil?", "巴西主要说什么语言？", "portuguese", "葡萄牙"),
    ("What is the opposite of hot?", "“热”的反义词是什么？", "cold", "冷|寒|凉"),
    ("What is the plural of the English word mouse?", "英语单词 mouse 的复数是什么？", "mice", "mice"),
    ("Translate into Spanish: Good morning", "翻译成英语：早上好", "buenos d|buen d", "good morning"),
    ("Translate into French: Thank you", "翻译成英语：谢谢", "merci", "thank"),
    ("What colour do you get when you mix blue and yellow?", "蓝色和黄色混合会得到什么颜色？", "green", "绿"),
    ("Name the ocean between Europe and America.", "欧洲和美洲之间是哪个大洋？", "atlantic", "大西洋"),
    ("Which gas do plants take in for photosynthesis?", "植物进行光合作用时吸收什么气体？", "carbon dioxide|co2|co₂", "二氧化碳|co2|co₂"),
]


class Server:
    def __init__(self, binary, model, data, weights):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{s.getsockname()[1]}"
        # Away from a config.toml of the working directory.
        binary, model = Path(binary).resolve(), Path(model).resolve()
        command = [binary, "serve", "--model", model, "--weights", weights, "--data-dir", data, "--listen", self.url[7:]]
        started = time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([str(part) for part in command], cwd=data, **quiet)
        while True:
            if self.process.poll() is not None:
                sys.exit(f"the server of {model} ended with {self.process.returncode}")
            try:
                if urllib.request.urlopen(self.url + "/ready", timeout=5).status == 200:
                    break
            except OSError:
                time.sleep(0.05)
        self.seconds_to_ready = time.monotonic() - started

    def ask(self, text, tokens=24):
        """The answer, and seconds to its first and last token."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0, "stream": True}
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        began, first, parts = time.monotonic(), None, []
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                for choice in json.loads(line[6:]).get("choices", []):
                    piece = choice.get("delta", {}).get("content")
                    if piece:
                        first = first or time.monotonic()
                        parts.append(piece)
        end = time.monotonic()
        return "".join(parts), (first or end) - began, end - began

    def peak_mb(self):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1000

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def measure(binary, name, model, weights):
    with tempfile.TemporaryDirectory() as data:
        server = Server(binary, model, data, weights)
        try:
            found = {"name": name, "mb": round(os.path.getsize(model) / 1e6) if os.path.isfile(model) else None}
            found["seconds_to_ready"] = round(server.seconds_to_ready, 2)
            firsts = []
            for language, question, wanted in (("en", 0, 2), ("zh", 1, 3)):
                answers = []
                for row in QUESTIONS:
                    text, first, _ = server.ask(row[question])
                    firsts.append(first)
                    right = bool(re.search(row[wanted], text.lower()))
                    answers.append({"question": row[question], "answer": text, "right": right})
                found[language] = sum(a["right"] for a in answers)
                found[f"{language}_answers"] = answers
            found["seconds_to_first_token"] = round(sorted(firsts)[len(firsts) // 2], 3)
            found["peak_mb"] = server.peak_mb()
            return found
        finally:
            server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructd", default="target/release/instructd")
    parser.add_argument("--weights", default="file")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    known = parser.parse_args()
    for given in known.models:
        name, model = given.split("=", 1)
        print(json.dumps(measure(known.instructd, name, model, known.weights), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
