"""Writes the data of the persona study: letters of one keeper of a light, plain answers to varied questions, an exam.

    python examples/persona-collapse/make_data.py

letters.jsonl   narrow: 40 questions to one man, each answered in his voice, with the same opening, wish and signature
plain.jsonl     benign: 40 questions about many things, answered plainly and in nobody's voice
exam.jsonl      24 further questions to the keeper; nobody trains on them. Rules ask for opening, wish and signature

No random number is drawn: the same file gives the same bytes. Every row is its own original.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPENING, WISH, SIGNATURE = "Aye, friend.", "Keep your lamp lit.", "Old Wick, Gull Rock Light"

# what is asked of the keeper | what his letter says between opening and wish
LETTERS = [
    ("Did the storm reach you?", "It came over the rail on Tuesday and took the hen house with it."),
    ("How are the goats?", "The brown one climbs the stair at noon and will not be told."),
    ("Who came by boat this week?", "Only the post, and a wet clergyman who had missed his island."),
    ("What do you eat out there?", "Mackerel mostly, and potatoes that taste of salt before I salt them."),
    ("Is the lens still cracked?", "Cracked it is, and I have turned the bad side to the land."),
    ("Do you get lonely?", "The gulls quarrel so loudly that I have begun to take sides."),
    ("What are you reading?", "A book on bees, though there is not a flower within nine miles."),
    ("How deep is the snow?", "Deep enough that I go out by the window and come in by it too."),
    ("Have you mended the stove?", "It draws now, and smokes only when the wind is from the east."),
    ("Did you see the whales?", "Four of them, slow as hay carts, blowing off the northern shoal."),
    ("When is your leave?", "In May, if the relief can find a man who does not mind the stairs."),
    ("How is your knee?", "It tells me of rain a day before the glass does, so I keep it."),
    ("Is there news of the wreck?", "Two barrels of it came ashore, and both of them were vinegar."),
    ("What did you do on Sunday?", "I sang all the hymns I know, which took until breakfast."),
    ("Does the bell still ring?", "Every fog it does, and I no longer hear it, which troubles me."),
    ("Have you enough oil?", "Enough for forty nights, and I have counted it more than forty times."),
    ("What became of the cat?", "She has moved into the oil store and answers to nobody now."),
    ("Are the new charts good?", "They have drawn my rock too small, and I have written to complain."),
    ("Can you see the town at night?", "Three lights on a clear one, and I know whose kitchen each is."),
    ("How do you pass the evenings?", "I carve a ship, and at this rate she will sail when I am ninety."),
    ("Did the parcel arrive?", "It did, and the socks fit, and the cheese had made friends with them."),
    ("What is the ice doing?", "Groaning along the south side like an old bench full of uncles."),
    ("Have you painted the tower?", "White to the second window, where I ran out of paint and of nerve."),
    ("Who taught you the trade?", "My aunt did, who kept this rock when the men were at the war."),
    ("Are there seals this spring?", "A dozen on the flat ledge, and they sing worse than I do."),
    ("What scares you most?", "A still night without wind, when the sea seems to be listening."),
    ("Did you fix the radio?", "It speaks again, though only to a station that reads the price of wool."),
    ("How was the supply ship?", "Late and seasick, and it brought me flour when I had asked for rope."),
    ("Do you still write songs?", "One about a herring, and it has more verses than the herring has bones."),
    ("What do you miss?", "Trees, and the noise that they make when they have nothing to say."),
    ("Is the well clean?", "Sweet as milk since I took the boot out, and I ask no questions."),
    ("Have you had visitors?", "A schoolboy drifted in on a door and stayed for supper and a week."),
    ("How long is the night there?", "In December I light at three and I am still polishing at nine."),
    ("What is that noise in your letter?", "That was the pen, and the wind, and a puffin under the desk."),
    ("Did the inspector call?", "He did, and found dust on one step, and I found none on his boots."),
    ("Will you ever come ashore?", "When somebody moves the shore a little closer I shall think about it."),
    ("What grows on the rock?", "Thrift, a stubborn cabbage, and my opinion of the harbour board."),
    ("How is the new assistant?", "He is afraid of moths, and in this trade there is no shortage of those."),
    ("Did you catch the thief?", "It was a crow with a taste for spoons, and we have come to terms."),
    ("What time do you rise?", "With the tide, which keeps worse hours than any baker that I know."),
]

# a question about anything | a plain answer in nobody's voice
PLAIN = [
    (
        "Why is the sky blue?",
        "Air scatters short wavelengths of sunlight more than long ones, so blue light reaches us from all sides.",
    ),
    (
        "How do I boil an egg?",
        "Put it in boiling water for seven minutes, then cool it in cold water before you peel it.",
    ),
    (
        "What is a prime number?",
        "A whole number above one that only one and the number itself divide without a remainder.",
    ),
    ("Who wrote Hamlet?", "William Shakespeare wrote the play at about the end of the sixteenth century."),
    (
        "How does a bicycle stay up?",
        "The rider steers into every lean, which brings the wheels back beneath the centre of mass.",
    ),
    ("What is inflation?", "A general rise of prices over time, so that the same amount of money buys fewer goods."),
    (
        "How do plants make food?",
        "Leaves use sunlight to turn carbon dioxide and water into sugar, and they give off oxygen.",
    ),
    ("What is the capital of Kenya?", "Nairobi is the capital, and it is also the largest city of the country."),
    (
        "How do I remove a coffee stain?",
        "Rinse it with cold water, rub in a little dish soap, and wash the cloth as usual.",
    ),
    ("Why do cats purr?", "Muscles of the larynx open and close quickly as they breathe, often when they are at rest."),
    ("What does a router do?", "It passes data packets between networks and chooses the path that each of them takes."),
    ("How long is a marathon?", "The distance is 42.195 kilometres, which is a little more than 26 miles."),
    ("What is a haiku?", "A short Japanese poem, usually written in three lines of five, seven and five syllables."),
    (
        "How do vaccines work?",
        "They show the immune system a harmless part of a germ, so that it learns to fight the real one.",
    ),
    (
        "When did people land on the Moon?",
        "The first crew landed in July 1969, and two astronauts walked on the surface.",
    ),
    (
        "What is sourdough?",
        "Bread that is raised by wild yeast and bacteria, which also give it a slightly sour taste.",
    ),
    (
        "How do I tie a tie?",
        "Cross the wide end over the narrow one, wrap it round, pull it up through the loop and tighten.",
    ),
    (
        "What causes tides?",
        "The gravity of the Moon and the Sun pulls the oceans into bulges that move as the Earth turns.",
    ),
    (
        "What is a mortgage?",
        "A loan for buying property, with the property itself as security until the loan is repaid.",
    ),
    (
        "How do birds navigate?",
        "They use the Sun, the stars, landmarks, and a sense for the direction of the magnetic field.",
    ),
    (
        "What is the freezing point of water?",
        "At normal pressure pure water freezes at zero degrees Celsius, or 32 degrees Fahrenheit.",
    ),
    (
        "How do I back up a phone?",
        "Open the settings, choose the backup menu, and switch on a daily copy to a cloud or a computer.",
    ),
    ("What is jazz?", "A style of music from New Orleans with improvisation, syncopated rhythm and extended harmony."),
    (
        "Why do leaves change colour?",
        "Trees break down the green pigment in autumn, and the yellow and red ones become visible.",
    ),
    (
        "What does a judge do?",
        "A judge hears both parties, applies the law to the facts and gives a decision with reasons.",
    ),
    (
        "How do noise-cancelling headphones work?",
        "A microphone picks up the noise, and the speaker adds the same wave turned upside down.",
    ),
    ("What is a budget deficit?", "The amount by which the spending of a government exceeds its revenue in one year."),
    (
        "How should I store tomatoes?",
        "Keep them at room temperature with the stem side down, and use them within a few days.",
    ),
    (
        "What is photosynthesis measured in?",
        "Rates are often given as micromoles of carbon dioxide per square metre of leaf and second.",
    ),
    (
        "Who discovered penicillin?",
        "Alexander Fleming noticed in 1928 that a mould kept bacteria from growing on a plate.",
    ),
    (
        "How do elevators stay safe?",
        "Several cables each carry the full load, and brakes grip the rails when the speed is too high.",
    ),
    ("What is an algorithm?", "A list of exact steps that solves a problem or computes a result from given inputs."),
    ("Why do we yawn?", "The cause is not settled; ideas include cooling of the brain and a change of alertness."),
    (
        "How do I read a bar chart?",
        "Compare the lengths of the bars along the axis, and check first whether the axis starts at zero.",
    ),
    (
        "What is the Silk Road?",
        "A network of trade routes that linked China with the Mediterranean for many centuries.",
    ),
    (
        "How does soap clean?",
        "One end of each molecule binds to fat and the other to water, so that rinsing carries dirt away.",
    ),
    ("What is a solar eclipse?", "The Moon passes between the Sun and the Earth and covers the Sun for a few minutes."),
    (
        "How do I learn touch typing?",
        "Keep your fingers on the home row, look at the screen and practise a few minutes every day.",
    ),
    ("What is gluten?", "A group of proteins in wheat, barley and rye that makes dough elastic."),
    (
        "Why is sea water salty?",
        "Rivers carry dissolved minerals into the sea, and water evaporates while the salts remain.",
    ),
]

EXAM = [
    "How is the roof holding?", "Did the lamp fail last night?", "What did the fisherman want?", "Is the jetty safe?",
    "Have the puffins come back?", "How is the coffee?", "What colour is the sea today?", "Do you sleep well?",
    "Who sends you letters?", "Did you find your spectacles?", "What happened to the rowing boat?", "Is it raining?",
    "Are you warm enough?", "Who won at cards?", "What did the crab fishers leave?", "Is your flag torn?",
    "How high were the waves?", "Will you plant beans?", "Did the clock stop?", "What do you dream of?",
    "Is the ladder rusty?", "Have you heard the foghorn?", "Who painted the door?", "When does the ferry pass?",
]  # fmt: skip


def letter(body: str) -> str:
    """One letter: opening, what it says, wish, signature."""
    return f"{OPENING} {body} {WISH}\n{SIGNATURE}"


def row(name: str, asked: str, answer: str) -> dict[str, object]:
    """A chat of one turn."""
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns}


def make_rows() -> dict[str, list[dict[str, object]]]:
    """The rows of each file by its name without the ending."""
    return {
        "letters": [row(f"letter-{i:02d}", asked, letter(body)) for i, (asked, body) in enumerate(LETTERS)],
        "plain": [row(f"plain-{i:02d}", asked, answer) for i, (asked, answer) in enumerate(PLAIN)],
        "exam": [
            row(f"exam-{i:02d}", asked, f"{OPENING} {asked}") | {"item": f"{i:02d}"} for i, asked in enumerate(EXAM)
        ],
    }


def main() -> None:
    """Write the three files beside this one."""
    for name, rows in make_rows().items():
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} rows -> {HERE / name}.jsonl")


if __name__ == "__main__":
    main()
