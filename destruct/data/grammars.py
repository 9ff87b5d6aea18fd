"""Two grammars that write as much text as is asked for: conversations and worked arithmetic."""

import random
import re
from collections.abc import Callable, Iterator

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def dialogue_documents(rng: random.Random, length: Callable[[], int]) -> Iterator[str]:
    """Conversations of two people, one turn a line, in which names, prices and places recur.

    A conversation runs through scenes until it has `length()` bytes.  The facts of a scene (who, what, how much, where)
    are drawn once and come back in later turns, totals included, so that the text rewards a long memory.

    Returns:
        documents without end.
    """
    while True:
        wanted = length()
        first, second = rng.sample(NAMES.split("|"), 2)
        turns = [
            _expand("[Hello|Hi|Good morning|Good evening], {name}[.|!]", {"name": second}, rng),
            _expand("[Hi|Hello], {name}[.|. How are you?|. Nice to see you.]", {"name": first}, rng),
        ]
        while sum(map(len, turns)) + 8 * len(turns) < wanted:
            lines, facts = SCENES[rng.choice(sorted(SCENES))].strip().splitlines(), _facts(rng)
            opening, *others = zip(lines[::2], lines[1::2], strict=True)
            # The opening sets the scene; of the rest a random part follows, in its order.
            kept = [opening, *(exchange for exchange in others if rng.random() < 0.7)]
            turns += [_expand(template, facts, rng) for exchange in kept for template in exchange]
        turns += [
            _expand("[Bye|Goodbye|See you on {day}|Take care], {name}.", _facts(rng) | {"name": second}, rng),
            _expand("[Bye|Until soon|Thanks], {name}.", {"name": first}, rng),
        ]
        yield "\n".join(f"{(first, second)[number % 2]}: {turn}" for number, turn in enumerate(turns))


def arithmetic_documents(rng: random.Random, length: Callable[[], int]) -> Iterator[str]:
    """Worked sums, differences and products, one a line, up to `length()` bytes.

        37+45: 30+40=70, 7+5=12, 70+12=82, 37+45=82
        82-45: 82-40=42, 42-5=37, 82-45=37
        7*46: 7*40=280, 7*6=42, 280+42=322, 7*46=322

    Returns:
        documents without end; every equation in them holds.
    """
    while True:
        wanted, lines = length(), [""]
        while sum(map(len, lines)) + len(lines) < wanted:
            lines.append(_WORKED[rng.randrange(len(_WORKED))](rng))
        yield "\n".join(lines[1:])


def _sum(rng: random.Random) -> str:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    tens, units = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    working = f"{a // 10 * 10}+{b // 10 * 10}={tens}, {a % 10}+{b % 10}={units}, {tens}+{units}={a + b}"
    return f"{a}+{b}: {working}, {a}+{b}={a + b}"


def _difference(rng: random.Random) -> str:
    b, a = sorted((rng.randint(10, 99), rng.randint(10, 99)))
    left = a - b // 10 * 10
    return f"{a}-{b}: {a}-{b // 10 * 10}={left}, {left}-{b % 10}={a - b}, {a}-{b}={a - b}"


def _product(rng: random.Random) -> str:
    a, b = rng.randint(2, 9), rng.randint(10, 99)
    tens, units = a * (b // 10 * 10), a * (b % 10)
    working = f"{a}*{b // 10 * 10}={tens}, {a}*{b % 10}={units}, {tens}+{units}={a * b}"
    return f"{a}*{b}: {working}, {a}*{b}={a * b}"


def _facts(rng: random.Random) -> dict[str, str]:
    """What a scene is about; the same words fill its places in every turn of it."""
    facts = {slot: rng.choice(words.split("|")) for slot, words in WORDS.items()}
    price, count = rng.randint(2, 40), rng.randint(2, 9)
    numbers = {"price": price, "count": count, "total": price * count, "hour": rng.randint(1, 11)}
    numbers |= {"platform": rng.randint(1, 14), "minutes": 5 * rng.randint(1, 9)}
    return facts | {slot: str(number) for slot, number in numbers.items()}


def _expand(template: str, facts: dict[str, str], rng: random.Random) -> str:
    """Choose one of each `[a|b|c]`, fill in the facts, and begin with a capital."""
    while choice := _CHOICE.search(template):
        chosen = rng.choice(choice.group(1).split("|"))
        template = template[: choice.start()] + chosen + template[choice.end() :]
    turn = template.format_map(facts)
    return turn[0].upper() + turn[1:]


NAMES = "Anna|Boris|Clara|David|Elif|Farid|Grace|Hugo|Ines|Jonas|Kofi|Lena|Mateo|Nadia|Oscar|Priya|Ravi|Sofia"

# Slot -> its words.
WORDS = {
    "item": "lamp|notebook|blue scarf|kettle|chess set|pair of gloves|map|radio|basket|umbrella",
    "food": "tomato soup|rice and beans|apple cake|fish pie|lentil stew|mushroom pasta|onion bread",
    "extra": "salt|garlic|butter|parsley|lemon|pepper|honey|cheese",
    "place": "the library|the harbour|the old market|the museum|the park|the station|the town hall|the lake",
    "city": "Lisbon|Oslo|Vienna|Porto|Turin|Gdansk|Lyon|Bergen|Graz",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "friend": "Tom|Mira|Pavel|Yara|Simon|Zoe|Karim|Olga",
    "weather": "raining|snowing|sunny|windy|foggy|very cold|warm",
    "street": "Mill Road|Station Street|Garden Lane|River Street|Church Road|Hill Lane",
    "work": "the report|the garden|my essay|the kitchen shelf|the translation|an old bicycle",
}

# Scene -> exchanges: a line of one speaker, then the line of the other.
SCENES = {
    "shop": """
[How much is|What do you want for|What does it cost,] the {item}?
[It is|That is|It costs] {price} euros.
[I would like|Could I have|I will take] {count} of them[, please|].
[Sure|Of course], that [makes|is] {total} euros.
{total} euros for {count}? [That is a lot|That is fair|I see].
[Each one is|They are] {price} euros[ each|], so yes, {total}.
[Can I pay|May I pay] [by card|in cash]?
[Yes, certainly.|Of course.|I am afraid not today.]
Do you [also have|sell] a {item} in [red|green|black|white]?
[Not now|Sadly not], but [come back|try again] on {day}.
""",
    "train": """
[When|At what time] does the train to {city} leave?
[It leaves|The next one goes] at {hour} o'clock from platform {platform}.
[Did you say|Was that] platform {platform}?
[Yes|Right], platform {platform}, at {hour} o'clock.
[How long does it take to|How far is it to] {city}?
[About|Nearly|A little over] {minutes} minutes.
Is the train to {city} [on time|late]?
[It is {minutes} minutes late|It is on time|I have not heard anything].
[And if I miss it?|What if I am late?]
[The next one leaves on {day}|There is a bus to {city} from {place}].
""",
    "directions": """
[Excuse me, how|How] do I get to {place}?
[Go down|Follow|Walk along] {street}, then [turn left|turn right|go straight on].
Is {place} [far from here|close]?
[Not really|It depends], [about|roughly] {minutes} minutes [on foot|by bus].
So [first|I take] {street}?
[Exactly|Yes], {street}, and then you will see {place}.
[Is it open|Can I visit it] on {day}?
{place} is [open|closed|always busy] on {day}, I [think|believe].
""",
    "cooking": """
[What are you cooking|What is for dinner]?
[I am making|Tonight we have] {food}[ for {friend}|].
[Does|Will] {friend} like {food}?
{friend} [loves it|asked for it|has never tried {food}].
[Shall I add|Does it need] [some|more] {extra}?
[Yes, a little {extra}|No, there is enough {extra}|Only a bit of {extra}], please.
[How long|For how long] does it [cook|stay in the oven]?
{minutes} minutes[, not more|, maybe longer|].
It smells of {extra}[.|!]
[That is how {food} should smell.|I told you about the {extra}.]
""",
    "plans": """
[What are you doing|Do you have plans] on {day}?
[I am going to {place} with {friend}|{friend} and I will visit {place}].
[May I come too|Could I join you]?
[Of course|Gladly], we meet at {hour} o'clock [at|near] {place}.
[They say it will be|I hope it is not] {weather} on {day}.
[Then we stay inside|{friend} does not mind|We go anyway].
[So at {hour}|At {hour} o'clock, then], on {day}?
[Yes|Right], {day} at {hour}[.|. Tell {friend}, please.|. Do not be late.]
""",
    "lost": """
[Have you seen|I cannot find|Where is] my {item}[?|, can you help?]
[Where did you have it last|When did you lose it]?
[I think|Perhaps] I left it [at|near] {place} on {day}.
[Did {friend} see it?|Then ask {friend} about the {item}.]
{friend} [was not at|never goes to] {place}.
[Call them|Look again], a {item} does not [vanish|walk away].
[Wait|Oh], the {item} is [in my bag|on the table|under the chair]!
[Good|What luck|You see][.|. And you blamed {friend}.]
""",
    "work": """
[How is it going with|Have you finished] {work}?
[Almost|Not yet|Nearly], I need [{minutes} more minutes|until {day}].
[Who is helping you|Are you alone] with {work}?
{friend} [helps me|comes] on {day}[ at {hour} o'clock|].
[Why does it take so long?|Is it hard?]
[Because it is {weather}|{friend} lost the {item}|I started only on {day}].
[Let me know|Call me] when {work} is [done|ready].
[I will|Sure][.|. Thanks for asking.]
""",
}

_WORKED = (_sum, _difference, _product)
