"""A seeded grammar of little stories: the text that the sample model is trained and measured on.

A story casts a few characters, things and places, then tells one of ten plots with them. What comes late
depends on what came early: who owns the red kite, where it was lost, which tool frees a goat from the mud,
what the weather was. A model that forgets the cast cannot predict the ending, so perplexity on these
stories depends on attention and not on word frequencies alone.

The plots are text (``GRAMMAR``), one sentence or two a line:

=============================  =================================================================
``== name: what happens``      a block of lines; the names of plots are in ``PLOTS``
``line``, then ``/ line``      one of these lines, at random
``? line``                     told half of the time (its ``/`` alternatives belong to it)
``--``                         a new paragraph
``@go who=hero where=hill``    another block, with roles passed to it by name
``[walked|ran|]``              one of the choices, at random; may be nested, may be empty
``{hero.their}``               an attribute of a role; ``{hero}`` alone is the plain name
=============================  =================================================================

Everything is drawn from one ``random.Random(seed)``: the same seed gives the same stories on every machine.

    >>> stories(seed=1, count=2) == stories(seed=1, count=2)
    True
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


def words(text: str, separator: str | None = None) -> list[str]:
    """Split a list that is easier to read as one string."""
    return [word.strip() for word in text.split(separator)]


GIRLS = words("Mia Anna Lily Ruth Nora Ella Rosa Ivy Clara June Wendy Kate Emma Greta Olga Paula")
BOYS = words("Tom Ben Sam Max Leo Finn Otto Jack Hugo Peter Carl Dan Emil Felix Noah Oscar")
PETS = words("Pip Dot Moss Tilly Rusty Pepper Bruno Hazel Button Teddy Nutmeg Bramble Ginger Olive Patch Willow")
ANIMALS = words("fox bear rabbit owl mouse hedgehog otter duck goat frog squirrel badger cat dog beaver")
TRAITS = words("kind brave shy clever curious patient cheerful quiet young old little hungry merry proud")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
LOOKS = words("red blue green yellow white black golden silver tiny old wooden round shiny broken pretty heavy")
THINGS = words(
    """kite ball drum hat boat bell lamp book basket scarf cup ring coat box spoon whistle mirror chair clock
    flag pillow teapot wheel flower"""
)
FOODS = words(
    """apple pie, honey cake, warm bread, pumpkin soup, cherry jam, nut cookies, goat cheese, sweet pears,
    mint tea, plum cake, hot milk, blackberries, fried fish, roasted nuts, rice and beans, carrot salad""",
    ",",
)
PLACES = words(
    """by the river, on the hill, in the garden, in the barn, under the bridge, in the forest, at the market,
    behind the mill, next to the well, at the lake, under the oak tree, in front of the school,
    inside the cave, in the meadow, in the tower, on the beach, in front of the castle, on the farm,
    behind the church, at the harbor""",
    ",",
)
# what one loves to do: what one did
HOBBIES = words(
    """sing: sang, dance: danced, paint: painted, swim: swam, read books: read books,
    play the flute: played the flute, plant flowers: planted flowers, tell jokes: told jokes,
    count the stars: counted the stars, climb trees: climbed trees, draw maps: drew maps,
    write poems: wrote poems, ride a bike: rode a bike, play chess: played chess""",
    ",",
)
# the weather: what one does about it: how it ends
WEATHERS = words(
    """it was raining: took an umbrella: the rain had stopped
    a cold wind was blowing: wore a warm scarf: the wind had grown quiet
    snow was falling: put on thick boots: the snow had melted
    the fog was thick: carried a small lantern: the fog had lifted
    the sun was hot: wore a straw hat: the sun had gone down""",
    "\n",
)
# the trouble of a friend: the one tool that helps: how it helps
TROUBLES = words(
    """stuck in a tall tree: ladder: leaned the ladder against the tree, and {friend} climbed down
    stuck in deep mud: rope: threw the rope to {friend} and pulled {friend.them} out of the mud
    hurt and could not walk: bandage: tied the bandage around the hurt leg of {friend}
    lost in the dark: lantern: lit the lantern, and {friend} followed the light
    sad because the cart had a broken wheel: hammer: fixed the wheel of the cart with the hammer
    afraid because water came into the boat: bucket: used the bucket until the boat was dry
    locked in a little house: key: turned the key, and {friend} walked out of the little house
    cold and shivering: blanket: put the blanket around {friend}
    sad because the flowers were dry: watering can: gave water to the flowers with the watering can
    full of thorns and crying: comb: combed out the thorns one by one""",
    "\n",
)

SAID = "[said|said|answered|replied]"
REMEMBER = "\n[do you remember?|tell me,|and now tell me:]"
PLOTS = words("lost trade rescue cooking hiding gift race letter quarrel guessing")
GRAMMAR = """
== lost: the hero loses a thing and looks in the wrong place; a friend knows where it is
@opening
{hero} had {thing.a} and took it everywhere.
/ {hero.their} [greatest|dearest] treasure was {thing.a}.
/ on {hero.their} birthday {hero} got {thing.a}.
@friend
@scene
@weather
@go who=hero where=place
{place}, {hero} [put down|forgot] {thing.the}[| and fell asleep| while {hero.they} {hobby.did}].
/ {hero} [played|rested] {place}, and there {hero.they} dropped {thing.the}.
in the evening, {thing.the} was gone.
/ "Where is my {thing}?" cried {hero}.
/ when {hero.they} came home, {hero.they} could not find {thing.the}.
@feel who=hero how=sad
{hero} looked {second}, but {thing.the} was not there.
/ first {hero.they} looked {second}. Then {hero.they} looked {third}. Nothing!
/ {hero.they} searched {second} and {third}, but found only {extra.a}.
@scene
"Why are you sad, {hero}?" asked {friend}. "I lost my {thing}," said {hero}.
/ {hero} asked {friend}, "Did you see my {thing}?"
"I saw it {place}," {said} {friend}.
/ "You were {place} today," said {friend}. "Let us look there."
/ "Think, {hero}! Where were you today?" {hero} thought. "I was {place}!"
they went back to {place.the}, and there was {thing.the}.
/ {hero} and {friend} ran to {place.the} and found {thing.the}.
@thanks who=hero helper=friend
@weather_ends
@ending who=hero other_one=friend
? {remember} what did {hero} lose? It was {thing.the}.
/ {remember} where was {thing.the}? It was {place}.

== trade: a chain of trades, in which each owner wants what the next one has
@opening
{hero} had {thing.a}, but {hero.they} wanted {wanted.a}.
{friend.a} had {wanted.a}. {other.a} had {extra.a}.
/ {wanted.the} belonged to {friend.a}, and {other.a} had {extra.a}.
@scene
@go who=hero where=place
{friend} was {place}.
/ there {hero.they} met {friend}.
"May I have your {wanted}?" asked {hero}. "I will give you my {thing}."
/ "I would like your {wanted}, {friend}," said {hero}.
"[No|I am sorry|Not today]," {said} {friend}. "I [want|need] {extra.a}."
/ "Bring me {extra.a}, and you may have {wanted.the}," {said} {friend}.
@scene
@go who=hero where=second
{other} was {second}.
/ {second} {hero.they} found {other}.
"{friend} wants your {extra}," said {hero}. "Will you take my {thing}?"
/ "Let us trade," said {hero}. "My {thing} for your {extra}."
"Yes!" said {other}.
/ "With pleasure," {said} {other}.
/ {other} nodded happily.
so {other} took {thing.the}, and {hero} took {extra.the}.
/ {hero} gave {other} {thing.the} and got {extra.the}.
@scene
{hero} went back to {friend} {place}.
/ then {hero} ran back to {place.the}, where {friend} waited.
"Here is {extra.the}," said {hero}.
/ {hero} showed {friend} {extra.the}.
{friend} [smiled|was glad] and gave {hero} {wanted.the}.
/ "Then {wanted.the} is yours," said {friend}.
now {hero} had {wanted.the}, {friend} had {extra.the}, and {other} had {thing.the}. Everybody was happy.
@ending who=hero other_one=friend
? {remember} who has {thing.the} now? {other} has it.
/ {remember} who has {extra.the} now? {friend} has it.

== rescue: a friend is in trouble; only one tool helps, and somebody else has it
@opening
@friend
@weather
@scene
{place}, {hero} heard a voice. It was {friend}.
/ when {hero} came to {place.the}, {hero.they} heard {friend}.
/ {hero} went to {place.the} to {hobby.do}, and there was {friend}.
"Help me, {hero}!" cried {friend}.
/ "[Please help|Oh no|Oh dear]!" [called|cried] {friend}.
{friend} was {trouble.what}.
/ {friend.the} was {trouble.what}.
"[Wait here|Do not be afraid], {friend}," said {hero}. "I will [get|find] a {trouble.tool}."
/ "We need a {trouble.tool}," said {hero}.
@scene
{other.a} lived {second}. {other.they} had a {trouble.tool}.
/ {hero} knew that {other.a} had a {trouble.tool}. {other} lived {second}.
@go who=hero where=second
"{other}, may I have your {trouble.tool}?" asked {hero}. "{friend} needs help!"
/ "{friend} is {place} and needs a {trouble.tool}," said {hero}.
"[Of course|Take it and run]," {said} {other}.
/ {other} gave {hero} the {trouble.tool} at once.
{hero} ran back to {place.the} with the {trouble.tool}.
/ with the {trouble.tool}, {hero} hurried back to {friend}.
{hero} {trouble.cure}.
@scene
@thanks who=friend helper=hero
then they brought the {trouble.tool} back to {other}.
/ {hero} gave the {trouble.tool} back to {other} {second}.
@weather_ends
@ending who=hero other_one=friend
? {remember} who had the {trouble.tool}? It was {other}.
/ {remember} who was {trouble.what}? It was {friend}.

== cooking: three things to eat from three places, and in the end all three on one table
@opening
{friend.a} was coming to dinner, so {hero} wanted a [full|fine] table.
/ {hero} wanted to make a dinner for {friend.a}.
@weather
@scene
first {hero} went to {place.the} and got {food}.
/ {place} {hero.they} got {food}.
then {hero.they} went to {second.the} and got {snack}.
/ next came {second.the}, where {hero} got {snack}.
last of all, {hero} got {treat} {third}.
/ {other.a} {third} gave {hero.them} {treat}.
? @feel who=hero how=tired
@scene
in the evening {friend} came to the house {home}.
/ {friend} knocked at the door. {hero} opened it.
"What do we have for dinner, {hero}?" asked {friend}.
/ "It smells good here," said {friend}.
"We have {food}, {snack} and {treat}," {said} {hero}.
/ on the table were {food}, {snack} and {treat}.
"I like {snack} best," said {friend}.
/ "I got the {snack} {second}," said {hero}.
/ "Where did you find {treat}?" asked {friend}. "{third}," said {hero}.
they ate and {hobby.did} until {friend} went home.
/ after dinner they {hobby.did}, because {hero} loved it.
@thanks who=friend helper=hero
@weather_ends
? {remember} what did {hero} get {second}? It was {snack}.
/ {remember} who came to dinner? It was {friend}.

== hiding: hide and seek, and everybody is found where they hid
@opening
one day {friend.a} and {other.a} came to play.
/ {hero} played with {friend.a} and {other.a}.
"Let us play hide and seek," said {other}. "{hero} will seek!"
/ they played hide and seek, and {hero} had to seek.
@scene
{friend} hid {place}. {other} hid {second}.
/ {friend} ran to {place.the} and {other} ran to {second.the}.
{hero} counted to [ten|twenty].
/ "[Eight, nine, ten|One, two, three]! I am coming!" called {hero}.
{hero.they} looked {third}, but nobody was there.
/ first {hero} looked {third}, but found only {thing.a}.
@go who=hero where=place
"I see you, {friend}!" called {hero}.
/ there {hero.they} saw the [feet|nose|ears] of {friend}.
{friend} [laughed|came out]. Now only {other} was missing.
/ {hero} and {friend} looked for {other} together.
"Maybe {other} is {second}," said {friend}.
/ they heard a noise {second}.
and there was {other}!
/ {other} was really {second}.
/ "You found me," said {other} {second}.
@scene
{other} won the game and got {food}.
/ "You hid well, {other}," said {hero}. "You win."
@ending who=hero other_one=other
? {remember} who hid {place}? It was {friend}.
/ {remember} who hid {second}? It was {other}.

== gift: the hero finds out what a friend wishes for, and finds it
@opening
@friend
on {day} it was the birthday of {friend}.
/ the birthday of {friend} was on {day}.
"What does {friend} wish for?" {hero} asked {other.a}.
/ {hero} asked {other.a} for help.
"{friend} wishes for {wanted.a}," {said} {other}.
/ "I know that {friend} would love {wanted.a}," {said} {other}.
@scene
@weather
{place} {hero} found {thing.a}, but {friend} did not wish for {thing.a}.
/ {hero} saw {thing.a} {place}. No, that was not it.
@go who=hero where=second
there, at last, was {wanted.a}.
/ {second}, somebody sold {wanted.a}.
{hero} paid for it with [two|three|five] coins.
/ {hero} worked there all day, and then {wanted.the} was {hero.their} own.
@scene
on {day} {hero} [brought|gave] {friend} the present.
/ "Happy birthday, {friend}!" said {hero} on {day}.
{friend} opened the paper and saw {wanted.a}.
/ in the box was {wanted.a}.
"My {wanted}! How did you know?" asked {friend}. "{other} told me," said {hero}.
/ "I always wished for {wanted.a}," said {friend}.
@thanks who=friend helper=hero
@weather_ends
@ending who=hero other_one=friend
? {remember} what did {friend} wish for? It was {wanted.a}.
/ {remember} where did {hero} find {wanted.the}? It was {second}.

== race: three run for a prize, and who wins depends on what each does on the way
@opening
on {day} there was a race from {place.the} to {second.the}. The prize was {thing.a}.
/ everybody talked about the race to {second.the}. The winner would get {thing.a}.
{hero} ran against {friend.a} and {other.a}.
/ {friend.a} and {other.a} wanted to win, too.
@scene
"One, two, three, go!"
/ the race began {place}.
{last} stopped to eat {food}.
/ {last} [fell asleep|lost a shoe] {third}.
{slow} waited and helped {last}.
/ {slow} ran well, but {slow.they} took the long way.
/ {slow} was fast, but {slow.they} looked back too often.
{fast} ran and ran and did not stop.
/ {fast} did not look back.
so {fast} was first, {slow} was second and {last} was last.
/ first came {fast}, then {slow}, and then {last}.
@scene
{fast} got {thing.the}.
/ {thing.the} went to {fast}.
/ "{thing.the} is yours, {fast}," said the judge.
"Well done, {fast}," said {slow}.
/ {last} [cried a little|was not angry]. {fast} gave {last.them} some {snack}.
@ending who=fast other_one=last
? {remember} who won {thing.the}? It was {fast}.
/ {remember} who was last? It was {last}.

== letter: a letter names a day and a place; on that day, at that place, they meet
@opening
{hero} missed {hero.their} friend, {friend.a}, who lived far away {second}.
/ far away, {second}, lived {friend.a}, a friend of {hero}.
so {hero} wrote a letter.
/ one day {hero.they} took a pen and wrote a letter.
"Dear {friend}, come to {place.the} on {day}," [it said|{hero.they} wrote]. "Bring your {thing}."
/ "Dear {friend}, let us meet {place} on {day}. I will bring {food}."
@scene
{other.a} carried the letter to {second.the}.
/ {hero} gave the letter to {other.a}, who was going to {second.the}.
{friend} read it [twice|with a smile|aloud].
/ "A letter from {hero}!" said {friend}.
"Tell {hero} that I will come," {friend} said to {other}.
/ {friend} gave {other} some {snack} and said yes.
@scene
on {day}, {hero} waited {place}.
/ {day} came, and {hero} went to {place.the}.
at last {friend} came.
/ "{hero}! Here I am!" called {friend}.
they talked and {hobby.did} all day.
/ they sat {place} and {hobby.did}.
@ending who=hero other_one=friend
? {remember} on which day did they meet? It was on {day}.
/ {remember} who carried the letter? It was {other}.

== quarrel: two want the same thing, and a third knows how to share it
@opening
{hero} and {friend.a} found {thing.a} {place}.
/ one day {hero} and {friend.a} went to {place.the} and saw {thing.a}.
"The {thing} is mine," said {hero}. "No, it is mine," said {friend}.
/ "I saw it first," said {friend}. "No, I did," said {hero}.
@feel who=friend how=angry
they did not speak for a [whole day|long time].
/ {hero} went home, and {friend} went to {second.the}.
@scene
{other.a} heard about it.
/ {hero} told {other.a} about {thing.the}.
"Share {thing.the}," said {other}. "On {day} it belongs to {hero}, on {next_day} it belongs to {friend}."
"That is a good idea," said {hero}.
/ "{other} is right," said {friend}.
@scene
on {day}, {hero} [took|played with] {thing.the}.
/ {day} came, and {hero} had {thing.the}.
on {next_day}, {friend} [took|played with] {thing.the}.
/ {next_day} came, and {friend} had {thing.the}.
"I am sorry, {friend}," said {hero}. "I am sorry, too," said {friend}.
/ nobody was angry any more.
@thanks who=hero helper=other
@ending who=hero other_one=friend
? {remember} who had {thing.the} on {next_day}? It was {friend}.
/ {remember} who had {thing.the} on {day}? It was {hero}.

== guessing: a thing is in a bag; two guesses are wrong, the third must be right
@opening
@friend
{friend} had {thing.a}, {wanted.a} and {extra.a}.
/ {friend} owned three things: {thing.a}, {wanted.a} and {extra.a}.
{friend.they} put one of them into a bag.
/ one of the three was in {friend.their} bag.
"Guess what is in my bag, {hero}," said {friend}.
/ "What is in the bag?" asked {friend}.
@scene
"Is it {wrong.the}?" asked {hero}. "No," {said} {friend}.
"Is it {wrong_too.the}?" asked {hero}. "No, it is not {wrong_too.the}," {said} {friend}.
? {hero} thought about it.
/ {other.a} laughed.
/ {hero} ate some {food} and thought.
"Then it is {right.the}!" said {hero}.
/ "Now I know," said {hero}. "It is {right.the}!"
"Yes," said {friend}, "it is {right.the}."
/ {friend} opened the bag, and there was {right.the}.
@scene
{friend} gave {right.the} to {hero}.
/ "You may keep {right.the}," said {friend}.
/ {hero} was proud.
@thanks who=hero helper=friend
@ending who=hero other_one=friend
? {remember} what was in the bag? It was {right.the}.
/ {remember} who had the bag? It was {friend}.

== scene: a new paragraph
--
@aside

== opening: who the hero is, where they live, what they love to do
[once upon a time|long ago|many years ago], [there was|there lived] {hero.a}.
/ [once|in a small town|in a faraway land] there was {hero.a}. {hero} lived {home}.
/ {hero.a} lived {home}.
/ {home} lived {hero.a}.
/ this is the story of {hero.a}.
? {hero} [loved|liked|always wanted] to {hobby.do}.
/ [every morning|every evening|all day long] {hero} {hobby.did}.
/ {hero.they} loved to {hobby.do} [in the morning|after lunch|with friends].
/ everybody knew that {hero} loved to {hobby.do}.

== friend: who the friend is
{hero} had a [good|dear] friend, {friend.a}.
/ [the best friend of {hero} was|next door lived] {friend.a}.
/ {hero} [often|sometimes] played with {friend.a}.

== weather: what the weather was and what the hero did about it
[that day|that morning|on {next_day}] {weather.now}, so {hero} {weather.so}.
/ {hero} {weather.so}, because {weather.now}.
/ {weather.now}. {hero} {weather.so} and went outside.

== weather_ends: the ending may come back to the weather
? by then {weather.later}.
/ when they looked up, {weather.later}.

== go: somebody moves to a place
{who} [walked|ran|went|hurried] to {where.the}.
/ so {who} [walked|went|ran] [|all the way] to {where.the}.
/ [soon|a little later|after breakfast] {who} [came|went] to {where.the}.
@aside

== feel: how somebody feels
{who} [felt|was] [so|very|a little] {how}.
/ this made {who} [|very|quite] {how}.
/ {who.the} was {how}.

== aside: perhaps something that does not matter; the model must carry the cast across it
? [a bird|a cricket|an old song|a bee|the wind] could be heard in the [trees|grass|distance|bushes].
/ [white|grey|small|dark] clouds [moved|sailed|raced] over the [roofs|fields|hills|village].
/ {hero} was [humming|whistling|thinking of {snack}|counting steps|dreaming] [on the way|all the time].
/ somewhere a [dog barked|door closed|cow called|clock struck [three|four|five|six|seven]].
/ {hero} found [an apple|a nut|a carrot|a feather|a stone|a shell|a coin] [on the way|in the grass].
/ the [road|path|way] was [long|short|steep|dusty|muddy|full of leaves].
/ {hero} met [a snail|a sailor|two ants|a tired postman|three geese] and said [hello|good day].
/ it smelled of [hay|roses|smoke|fresh grass|rain|apples|the sea].
/ "[Hm|Well|Let me see|Oh my]," {hero} [thought|whispered|said to {hero.them}self].
/ [nobody|only a crow|only the moon|an old man] was [watching|awake|there to see it].

== thanks: one character thanks another
"Thank you, {helper}!" said {who}.
/ {who} [smiled|laughed] and said, "[Thank you|You are a true friend|You are so kind], {helper}."
/ {who} thanked {helper} and gave {helper.them} some {food}.
/ {who} [hugged|thanked] {helper} [again and again|with a big smile].

== ending: what is said goes back to the hobby and the cast
then {who} and {other_one} ate {food} [together|at home|until the evening].
/ in the evening {who} and {other_one} {hobby.did} [together|until the moon came up].
/ from that day on, {who} and {other_one} were [good|best] friends.
/ {who} went home and [slept well|was happy|told everybody about {other_one}].
/ "What a day!" said {who}. {other_one} [smiled|laughed|nodded].
"""


@dataclass(frozen=True)
class Named:
    """What roles of several words have in common: printed alone, they are their plain name."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def a(self) -> str:
        """When it is new: "a red kite"."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def the(self) -> str:
        """When it is known: "the red kite"."""
        return f"the {self.name}"


@dataclass(frozen=True)
class Someone(Named):
    """A character: name, kind ("girl", "fox"), trait, and pronouns."""

    kind: str
    trait: str
    they: str
    them: str
    their: str

    @property
    def a(self) -> str:
        """How a story introduces the character: "a shy fox named Pip"."""
        return f"{Named(self.trait).a} {self.kind} named {self.name}"

    @property
    def the(self) -> str:
        """How a story recalls the character: "the fox"."""
        return f"the {self.kind}"


@dataclass(frozen=True)
class Place(Named):
    """A place, named as the place where something happens: "under the bridge"."""

    @property
    def the(self) -> str:
        """The place itself: "the bridge"."""
        return self.name[self.name.index("the ") :]


@dataclass(frozen=True)
class Weather:
    """What the weather is, what one does about it, and how it ends."""

    now: str
    so: str
    later: str


@dataclass(frozen=True)
class Hobby:
    """Something that a character loves to do, and its past tense."""

    do: str
    did: str


@dataclass(frozen=True)
class Trouble:
    """The trouble of a friend, the one tool that helps, and how it helps."""

    what: str
    tool: str
    cure: str


Role = Named | Weather | Hobby | Trouble | str
Roles = dict[str, Role]


def cast(rng: random.Random) -> Roles:
    """Draw who and what the story is about; every plot uses some of it."""
    who, what = people(rng), things(rng)
    return {
        **named("hero friend other", who),
        **named("fast slow last", rng.sample(who, 3)),
        **named("thing wanted extra", what),
        **named("wrong wrong_too right", rng.sample(what, 3)),
        **named("home place second third", [Place(name) for name in rng.sample(PLACES, 4)]),
        **named("food snack treat", rng.sample(FOODS, 3)),
        **named("day next_day", rng.sample(DAYS, 2)),
        "hobby": Hobby(*words(rng.choice(HOBBIES), ":")),
        "weather": Weather(*words(rng.choice(WEATHERS), ":")),
        "trouble": Trouble(*words(rng.choice(TROUBLES), ":")),
        "said": SAID,
        "remember": REMEMBER,
    }


def people(rng: random.Random) -> list[Someone]:
    """Draw three who differ in kind, name and trait: animals, and at most one girl and one boy."""
    kinds = rng.sample(["girl", "boy", *rng.sample(ANIMALS, 3)], 3)
    return [someone(rng, *each) for each in zip(kinds, rng.sample(TRAITS, 3), rng.sample(PETS, 3), strict=True)]


def someone(rng: random.Random, kind: str, trait: str, pet: str) -> Someone:
    """Name one character and choose the pronouns; those of an animal cannot be told from its name."""
    name = {"girl": rng.choice(GIRLS), "boy": rng.choice(BOYS)}.get(kind, pet)
    if kind == "girl" or (kind != "boy" and rng.random() < 0.5):
        return Someone(name, kind, trait, "she", "her", "her")
    return Someone(name, kind, trait, "he", "him", "his")


def things(rng: random.Random) -> list[Named]:
    """Draw three things that differ in look and in noun."""
    return [Named(f"{look} {noun}") for look, noun in zip(rng.sample(LOOKS, 3), rng.sample(THINGS, 3), strict=True)]


def named(names: str, roles: Iterable[Role]) -> Roles:
    """Give the roles these names, in order."""
    return dict(zip(names.split(), roles, strict=True))


@dataclass(frozen=True)
class Beat:
    """One step of a block: alternative lines, and whether the step may be left out."""

    optional: bool
    lines: list[str]


def parse(grammar: str) -> dict[str, list[Beat]]:
    """Read the blocks of a grammar: name to beats."""
    blocks: dict[str, list[Beat]] = {}
    beats: list[Beat] = []
    for line in filter(None, grammar.splitlines()):
        if line.startswith("== "):
            beats = blocks[line[3 : line.index(":")]] = []
        elif line.startswith("/ "):
            beats[-1].lines.append(line[2:])
        else:
            beats.append(Beat(line.startswith("? "), [line.removeprefix("? ")]))
    return blocks


BLOCKS = parse(GRAMMAR)


def tell(rng: random.Random, block: str, roles: Roles) -> Iterator[str]:
    """Tell a block, line by line."""
    for beat in BLOCKS[block]:
        if not (beat.optional and rng.random() < 0.5):
            yield from tell_line(rng, rng.choice(beat.lines), roles)


def tell_line(rng: random.Random, line: str, roles: Roles) -> Iterator[str]:
    """Tell one line: a paragraph mark, another block, or a sentence."""
    if line == "--":
        yield "\n"
    elif line.startswith("@"):
        name, *pairs = line[1:].split()
        passed = dict(pair.split("=") for pair in pairs)
        yield from tell(rng, name, {**roles, **{key: roles.get(role, role) for key, role in passed.items()}})
    else:
        yield capitalised(expand(rng, line, roles))


def expand(rng: random.Random, text: str, roles: Roles) -> str:
    """Replace choices, innermost first, and roles; what a role says may hold both again."""
    while "[" in text or "{" in text:
        text = text.format_map(roles)
        text = re.sub(r"\[([^\[\]]*)\]", lambda choices: rng.choice(choices[1].split("|")), text)
    return text


def capitalised(text: str) -> str:
    """Start every sentence with a capital, also the one that starts with a quotation mark."""
    return re.sub(r'(^\s*"?|[.!?] "?)([a-z])', lambda start: start[1] + start[2].upper(), text)


def story(rng: random.Random) -> str:
    """Tell one story: ASCII text, one paragraph a line, no blank lines."""
    text = " ".join(tell(rng, rng.choice(PLOTS), cast(rng)))
    return re.sub(r" *\n *", "\n", re.sub(r" +", " ", text))


def stories(seed: int, count: int) -> list[str]:
    """Tell that many stories from one seed."""
    rng = random.Random(seed)
    return [story(rng) for _ in range(count)]


if __name__ == "__main__":
    print("\n\n".join(stories(seed=0, count=5)))
