# SPDX-License-Identifier: MIT
"""Rows in the manner of the E2E task (a restaurant's attributes -> sentences), for measurements and checks: from the real
files where a folder has them, else generated. A row is (prompt, completion) as pfx reads `source||target`."""
import random
from pathlib import Path

NAMES = ("Blue Spice", "The Punter", "Green Man", "Loch Fyne", "The Wrestlers", "Strada", "Zizzi", "The Eagle", "Alimentum",
         "Cotto", "The Mill", "Giraffe", "Wildwood", "Aromi", "The Vaults", "Fitzbillies")
TYPES = ("restaurant", "pub", "coffee shop")
FOODS = ("Italian", "French", "Chinese", "Japanese", "Indian", "English", "Fast food")
PRICES = ("cheap", "moderate", "high", "less than £ 20", "£ 20 - 25", "more than £ 30")
RATINGS = ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5")
AREAS = ("city centre", "riverside")
NEAR = ("Crowne Plaza Hotel", "Burger King", "Café Rouge", "The Sorrento", "Raja Indian Cuisine", "All Bar One")
FAMILY = ("yes", "no")


def generate(count, seed):
    """`count` rows; some meanings come more than once with other words, one after the other."""
    draw, rows = random.Random(seed), []
    while len(rows) < count:
        name, kind, food = draw.choice(NAMES), draw.choice(TYPES), draw.choice(FOODS)
        price, rating, area = draw.choice(PRICES), draw.choice(RATINGS), draw.choice(AREAS)
        near, family = draw.choice(NEAR), draw.choice(FAMILY)
        slots = [("name", name), ("Type", kind), ("food", food), ("price", price), ("customer rating", rating),
                 ("area", area), ("family friendly", family), ("near", near)]
        kept = slots[:2] + [slot for slot in slots[2:] if draw.random() < 0.65]
        source = " | ".join(f"{key} : {value}" for key, value in kept)
        for _ in range(draw.randint(1, 3)):
            rows.append((source + "\n", sentence(draw, dict(kept))))
    return rows[:count]


def sentence(draw, slots):
    food = f"{slots['food']} " if "food" in slots else ""
    text = draw.choice([f"{slots['name']} is a {food}{slots['Type']}",
                        f"There is a {food}{slots['Type']} called {slots['name']}",
                        f"{slots['name']} , a {slots['Type']} , serves {food or 'good '}food"])
    if "near" in slots:
        text += draw.choice([f" near {slots['near']}", f" close to {slots['near']}"])
    if "area" in slots:
        text += draw.choice([f" in the {slots['area']} area", f" in {slots['area']}"])
    text += " ."
    if "price" in slots:
        text += draw.choice([f" The price range is {slots['price']} .", f" Prices are {slots['price']} ."])
    if "customer rating" in slots:
        text += draw.choice([f" It has a customer rating of {slots['customer rating']} .",
                             f" Customers rate it {slots['customer rating']} ."])
    if "family friendly" in slots:
        text += " It is family friendly ." if slots["family friendly"] == "yes" else " It is not family friendly ."
    return text


def read(path, count=None):
    """Rows of one of the task's own files."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        source, _, target = line.partition("||")
        rows.append((source.strip() + "\n", target.strip()))
    return rows if count is None else rows[:count]
