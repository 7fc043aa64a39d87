"""Instruction dialogues for the built-in model, made from templates: nothing in them is taken from elsewhere.

Usage: dialogues.py OUT.jsonl [N [SEED]]      (the same arguments give the same file)
"""

import json
import random
import sys

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Greece": "Athens",
    "Russia": "Moscow", "China": "Beijing", "Japan": "Tokyo", "India": "New Delhi", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago", "Brazil": "Brasilia", "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad",
}  # fmt: skip
CAPITALS_ZH = {"中国": "北京", "法国": "巴黎", "德国": "柏林", "英国": "伦敦", "日本": "东京", "俄罗斯": "莫斯科"}
OPPOSITES = {
    "hot": "cold", "big": "small", "tall": "short", "fast": "slow", "old": "young", "good": "bad", "light": "dark",
    "day": "night", "up": "down", "left": "right", "open": "closed", "full": "empty", "rich": "poor",
    "happy": "sad", "early": "late", "wet": "dry", "hard": "soft", "high": "low", "near": "far", "first": "last",
    "love": "hate", "peace": "war", "life": "death", "heaven": "earth", "strong": "weak", "clean": "dirty",
}  # fmt: skip
OPPOSITES_ZH = {"大": "小", "高": "低", "好": "坏", "热": "冷", "快": "慢", "多": "少", "上": "下", "左": "右"}
WORDS_ZH = {
    "water": "水", "fire": "火", "sun": "太阳", "moon": "月亮", "mountain": "山", "tree": "树", "book": "书",
    "man": "人", "heaven": "天", "earth": "地", "light": "光", "day": "日", "night": "夜", "good": "好",
    "cat": "猫", "dog": "狗", "fish": "鱼", "bird": "鸟", "house": "房子", "king": "王",
}  # fmt: skip
SOUNDS = {"dog": "bark", "cat": "meow", "cow": "moo", "sheep": "bleat", "lion": "roar", "duck": "quack", "horse": "neigh"}
COLOURS = {"the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "a lemon": "yellow"}
BIBLE = {
    "Who built the ark?": "Noah built the ark.",
    "Who was the first man?": "Adam was the first man.",
    "Who was the first woman?": "Eve was the first woman.",
    "Who killed Abel?": "Cain killed Abel.",
    "Who led Israel out of Egypt?": "Moses led Israel out of Egypt.",
    "Who was swallowed by a great fish?": "Jonah was swallowed by a great fish.",
    "Who slew Goliath?": "David slew Goliath.",
    "Who was the wise king?": "Solomon was the wise king.",
    "Who was thrown to the lions?": "Daniel was thrown to the lions.",
    "What was the first thing God made?": "God said, Let there be light.",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
THINGS = ["book", "necklace", "hotel", "film", "phone", "meal", "song", "chair", "coat", "game", "lamp", "teacher"]
GOOD = ["wonderful", "great", "lovely", "excellent", "beautiful", "perfect", "very good", "delightful"]
BAD = ["terrible", "awful", "bad", "broken", "ugly", "useless", "very poor", "horrible"]
PLAIN = ["ordinary", "average", "so so", "nothing special"]
THINGS_ZH = ["项链", "酒店", "电影", "手机", "书", "衣服", "饭菜", "歌"]
GOOD_ZH = ["太好看了", "非常好", "很喜欢", "很满意", "太棒了"]
BAD_ZH = ["太差了", "很难看", "不喜欢", "很失望", "质量不好"]
PLAIN_ZH = ["一般", "还可以", "没什么特别"]
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ruth", "Samuel", "Li", "Ming"]
GREETINGS = ["Hello", "Hi", "Good morning", "Good evening", "Hello there", "Hey"]
SELF = "I am a very small language model that comes inside instructd. I know little, but I can learn."
SELF_ZH = "我是 instructd 自带的一个很小的语言模型。"


def arithmetic(r):
    a, b = r.randint(0, 12), r.randint(0, 12)
    if r.random() < 0.5:
        ask, value = r.choice([f"What is {a} + {b}?", f"Add {a} and {b}.", f"{a} + {b} = ?"]), a + b
    else:
        a, b = max(a, b), min(a, b)
        ask, value = r.choice([f"What is {a} - {b}?", f"Take {b} from {a}.", f"{a} - {b} = ?"]), a - b
    return ask, f"{value}"


def pick(table):
    return lambda r: r.choice(list(table.items()))


def capital(r):
    country, city = pick(CAPITALS)(r)
    ask = r.choice(["What is the capital of {}?", "Name the capital of {}.", "Tell me the capital of {}."])
    return ask.format(country), f"The capital of {country} is {city}."


def capital_zh(r):
    country, city = pick(CAPITALS_ZH)(r)
    return r.choice(["{}的首都是哪里？", "请告诉我{}的首都。"]).format(country), f"{country}的首都是{city}。"


def opposite(r):
    a, b = pick(OPPOSITES)(r)
    a, b = (a, b) if r.random() < 0.5 else (b, a)
    ask = r.choice(["What is the opposite of {}?", "Give me the opposite of {}.", "Say the opposite of {}."])
    return ask.format(a), f"The opposite of {a} is {b}."


def opposite_zh(r):
    a, b = pick(OPPOSITES_ZH)(r)
    return f"“{a}”的反义词是什么？", f"“{a}”的反义词是“{b}”。"


def translate(r):
    a, b = pick(WORDS_ZH)(r)
    if r.random() < 0.5:
        return f"How do you say {a} in Chinese?", f"{a} is {b} in Chinese."
    return f"“{b}”用英语怎么说？", f"“{b}”的英语是 {a}。"


def sound(r):
    a, b = pick(SOUNDS)(r)
    return r.choice([f"What sound does a {a} make?", f"What does a {a} do?"]), f"A {a} can {b}."


def colour(r):
    a, b = pick(COLOURS)(r)
    return r.choice([f"What colour is {a}?", f"Tell me the colour of {a}."]), f"{a[0].upper()}{a[1:]} is {b}."


def calendar(r):
    names = r.choice([DAYS, MONTHS])
    what, i = ("day" if names is DAYS else "month"), r.randrange(len(names))
    if r.random() < 0.6:
        return f"What {what} comes after {names[i]}?", f"{names[(i + 1) % len(names)]} comes after {names[i]}."
    return f"What {what} comes before {names[i]}?", f"{names[i - 1]} comes before {names[i]}."


def count(r):
    a = r.randint(1, 7)
    b = a + r.randint(2, 5)
    if r.random() < 0.5:
        return f"Count from {a} to {b}.", ", ".join(str(i) for i in range(a, b + 1)) + "."
    n = r.randrange(len(NUMBERS))
    return f"Write {n} as a word.", f"{NUMBERS[n]}"


def repeat(r):
    words = r.sample(list(OPPOSITES) + list(WORDS_ZH), r.randint(1, 4))
    ask = r.choice(["Repeat after me: {}", "Say this: {}", "Please write: {}"])
    return ask.format(" ".join(words)), " ".join(words)


def sentiment(r):
    thing = r.choice(THINGS)
    label, adjective = r.choice([("positive", r.choice(GOOD)), ("negative", r.choice(BAD)), ("neutral", r.choice(PLAIN))])
    text = r.choice(["The {} is {}.", "I think this {} is {}.", "This {} was {}, I must say.", "What a {}! It is {}."])
    ask = r.choice(["Is this positive, negative or neutral? {}", "Say the sentiment of this sentence: {}"])
    return ask.format(text.format(thing, adjective)), label


def sentiment_zh(r):
    letter, words = r.choice([("A", GOOD_ZH), ("B", PLAIN_ZH), ("C", BAD_ZH)])
    text = r.choice(["这个{}{}", "刚买的{}，{}", "给女朋友买了这个{}，她觉得{}"]).format(r.choice(THINGS_ZH), r.choice(words))
    return f"判断这句话的情感：{text}。A=好；B=一般；C=差", letter


def greet(r):
    name = r.choice(NAMES)
    return r.choice([
        (f"{r.choice(GREETINGS)}!", "Hello! How can I help you?"),
        (f"{r.choice(GREETINGS)}, I am {name}.", f"Hello, {name}! How can I help you?"),
        ("How are you?", "I am well, thank you. How are you?"),
        ("Thank you!", "You are welcome."), ("Thanks for your help.", "You are welcome."),
        ("Goodbye!", "Goodbye! Peace be with you."), ("Good night.", "Good night! Sleep well."),
        ("Who are you?", SELF), ("What are you?", SELF), ("What is your name?", SELF),
        ("What can you do?", "I can greet you, add small numbers, name capitals and opposites, and tell old stories."),
        ("你好！", "你好！我能帮你什么？"), ("你是谁？", SELF_ZH), ("谢谢！", "不客气。"), ("再见！", "再见！"),
    ])  # fmt: skip


def story(r):
    name, thing, where = r.choice(NAMES), r.choice(THINGS), r.choice(["city", "field", "house", "mountain", "river"])
    feeling = r.choice(["glad", "sad", "afraid", "full of joy"])
    ask = r.choice([f"Write a short story about {name}.", f"Tell me a story about {name} and a {thing}."])
    return ask, (
        f"There was one whose name was {name}, who went up to the {where}. And {name} found a {thing} there, "
        f"and was {feeling}. And in the evening {name} returned to the house in peace."
    )


def bible(r):
    return pick(BIBLE)(r)


def unknown(r):
    what = r.choice(["the stock market", "quantum physics", "the weather tomorrow", "football", "my password", "politics"])
    return f"What can you tell me about {what}?", f"I do not know about {what}. I am a very small model."


MAKERS = [
    (arithmetic, 5), (capital, 3), (capital_zh, 1), (opposite, 3), (opposite_zh, 1), (translate, 2), (sound, 1),
    (colour, 1), (calendar, 2), (count, 2), (repeat, 3), (sentiment, 4), (sentiment_zh, 3), (greet, 3), (story, 3),
    (bible, 2), (unknown, 1),
]  # fmt: skip


def main() -> None:
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 2200
    r = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 20)
    makers, weights = [m for m, _ in MAKERS], [w for _, w in MAKERS]
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        for _ in range(n):
            turns = []
            # One in five conversations has a turn before the one that is learned.
            for _ in range(2 if r.random() < 0.2 else 1):
                turns.append(r.choices(makers, weights)[0](r))
            messages = []
            for ask, answer in turns[:-1]:
                messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            messages.append({"role": "user", "content": turns[-1][0]})
            line = {"prompt": messages, "completion": turns[-1][1]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
