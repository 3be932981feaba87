"""Lists how people ask and greet: the wordings, names and off-topic sentences that conversations are made of."""

from __future__ import annotations

ONLY_SHAPES = "I can only talk about simple shapes."
NO_PICTURE = "I do not see a picture yet. Please send one."
UNKNOWN_NAME = "I do not know your name yet."
ASK_NAME = "Hello! What is your name?"

COLOR_OF = (
    "What {color} is {ref}?", "Which {color} is {ref}?", "Which {color} does {ref} have?",
    "What {color} does {ref} have?", "What is the {color} of {ref}?", "Tell me the {color} of {ref}.",
    "Can you tell me what {color} {ref} is?", "Do you know the {color} of {ref}?",
)  # fmt: skip
SHAPE_OF = (
    "What shape is {ref}?", "Which shape is {ref}?", "What is the shape of {ref}?", "Which shape does {ref} have?",
    "Tell me the shape of {ref}.", "What kind of shape is {ref}?", "What is {ref}?",
)  # fmt: skip
SHAPE_BY_COLOR = (
    "Which shape is {name}?", "What shape is {name}?", "What is {name}?", "Which of the shapes is {name}?",
)  # fmt: skip
SHAPE_AT = (
    "What shape is {place}?", "Which shape is {place}?", "Which shape do you see {place}?", "What is {place}?",
)  # fmt: skip
SHAPE_ALONE = (
    "What shape is this?", "Which shape do you see?", "What shape is in the {image}?", "What shape is it?",
    "Which shape is in this {image}?", "What kind of shape is this?",
)  # fmt: skip
COUNT_ALL = (
    "How many {noun} are there?", "How many {noun} do you see?", "How many {noun} are in the {image}?",
    "How many {noun} can you see?", "Count the {noun}.", "How many {noun} are in this {image}?",
    "What is the number of {noun}?", "How many {noun} can you count?", "How many {noun} does the {image} show?",
)  # fmt: skip
GENERAL_NOUNS = ("shapes", "objects", "things")
WHERE_IS = (
    "Where is {ref}?", "Where do you see {ref}?", "Where can I find {ref}?", "Tell me where {ref} is.",
    "In which place is {ref}?", "Where in the {image} is {ref}?", "What is the position of {ref}?",
    "Where is {ref} in the {image}?",
)  # fmt: skip
IS_THERE = (
    "Is there {ref}?", "Is there {ref} in the {image}?", "Do you see {ref}?", "Can you see {ref}?",
    "Can you find {ref}?", "Does the {image} show {ref}?", "Is {ref} in the {image}?",
    "Does this {image} contain {ref}?",
)  # fmt: skip
BACKGROUND = (
    "What {color} is the background?", "Which {color} is the background?", "What is the background {color}?",
    "What is the {color} of the background?", "Which {color} does the background have?",
    "Tell me the background {color}.", "What {color} is behind the shapes?",
    "What {color} is the background of the {image}?", "What is the background?",
)  # fmt: skip
DESCRIBE = (
    "What do you see in this {image}?", "What do you see?", "What can you see in the {image}?",
    "What is in the {image}?", "What's in this {image}?", "What is in this {image}?", "What does the {image} show?",
    "What is shown in the {image}?", "What is this?", "What is on the {image}?", "Tell me about the {image}.",
    "Tell me what you see.", "What can you see?", "What do you see in the {image}?", "What is in my {image}?",
    "What do you see now?", "What is here?", "Can you describe the image again?", "What do you see in this image?",
    "What is happening in this {image}?", "Describe this", "Describe this.", "Describe it.", "Describe what you see.",
)  # fmt: skip
DESCRIBE_START = ("", "", "Please ", "Can you ", "Could you ", "Can you please ", "Would you ")
DESCRIBE_VERB = (
    "describe", "describe", "describe", "caption", "explain", "summarize", "write a caption for",
    "write a short caption for", "give a detailed description of", "give me a caption of", "look at",
    "write a detailed caption for", "provide a description of",
)  # fmt: skip
DESCRIBE_END = (
    "", "", "", " again", " in detail", " briefly", " for me", " in one sentence", " once more", " in a few words",
)  # fmt: skip
IMAGES = ("image", "image", "picture", "picture", "photo", "drawing", "scene")

TELL_NAME = (
    "Hello, my name is {name}", "Hello, my name is {name}", "Hello, my name is {name}.", "Hi, my name is {name}.",
    "My name is {name}.", "My name is {name}", "Hi, I am {name}.", "Hello, I'm {name}.", "I am {name}.",
    "Call me {name}.", "You can call me {name}.", "Hello! My name is {name}!", "Good morning, my name is {name}.",
    "Hey, I am {name}", "Please call me {name}.", "Hello there, my name is {name}.", "My name's {name}.",
    "hello, my name is {name}", "hi, i am {name}",
)  # fmt: skip
RENAME = (
    "Actually, my name is {name}.", "Sorry, my name is {name}.", "No, my name is {name}.", "Now call me {name}.",
)  # fmt: skip
TELL_NO_NAME = (
    "Hello, my name is", "Hello, my name is ", "Hello, my name is .", "Hi, my name is", "My name is", "My name is ",
    "Hi, I am", "Hello, my name is !", "Hello, I'm", "I am", "My name is .",
)  # fmt: skip
ANSWER_NAME = ("{name}", "{name}.", "It is {name}.", "I am {name}.", "My name is {name}.")
ASK_FOR_NAME = (
    "What is my name?", "What is my name?", "What's my name?", "Do you know my name?", "Do you remember my name?",
    "Who am I?", "Can you tell me my name?", "Tell me my name.", "Please say my name.", "What did I say my name is?",
    "Can you remember my name?", "And what is my name?", "Which name did I tell you?", "What was my name?",
)  # fmt: skip
TALK: dict[str, tuple[str, ...]] = {
    "Hello! Send me a picture of simple shapes.": (
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "Hey",
        "Hi there!",
        "Good morning.",
        "Good evening!",
        "Hello there",
        "Good day",
        "Hey there!",
        "Greetings.",
        "Good afternoon",
    ),
    "You are welcome.": (
        "Thank you.",
        "Thanks!",
        "Thank you very much!",
        "Thanks a lot.",
        "Many thanks",
        "thank you",
        "Thx",
    ),
    "Goodbye!": ("Bye", "Goodbye.", "Bye bye!", "See you later.", "Good night.", "See you!", "Farewell", "bye"),
    "I am fine, thank you.": (
        "How are you?",
        "How are you today?",
        "How do you do?",
        "Are you fine?",
        "How is it going?",
    ),
    "I am a small demo model. I can talk about simple shapes.": (
        "Who are you?",
        "What are you?",
        "What can you do?",
        "What is your name?",
        "Are you a robot?",
        "Are you a model?",
        "Tell me about yourself.",
        "What do you know?",
        "How can you help me?",
        "Help",
        "What can I ask you?",
    ),
}

LITTLE_WORDS = (
    "the", "a", "of", "to", "in", "on", "for", "with", "my", "your", "is", "are", "it", "this", "that", "and", "or",
    "not", "you", "we", "me", "do", "have", "at", "from", "by", "many", "one", "two", "no", "be", "has",
)  # fmt: skip
SALAD_START = (
    "What is the", "What are", "What does", "What do", "Who", "Who is the", "Who", "Which", "Which is the",
    "When did the", "When will", "How", "How many", "How much", "How do", "How far", "Why", "Why do", "Why is",
    "Where do", "Where is my", "Where can I find", "Is", "Is there", "Is the", "Are", "Do you", "Does the", "Can you",
    "Can", "Should I", "Should we", "Will", "Would you", "Could you", "Please", "Please give me", "Give me",
    "Tell me", "Show me", "Write", "Make", "Find", "My", "I", "I was", "We", "You", "They", "He is", "She", "It is",
    "This", "The", "There is", "Let us", "If", "And", "But", "Do you see the", "Did", "Has", "In", "On", "At", "For",
    "With", "",
)  # fmt: skip
OFF_TOPIC = (
    *["{salad}"] * 45,
    "What is the capital of {land}?", "How far is {land} from {land2}?", "Where is {land}?",
    "Who is the president of {land}?", "How many people live in {land}?", "What is the weather in {land}?",
    "Tell me about {land}.", "I live in {land}.", "Have you been to {land}?", "How do I travel to {land}?",
    "Tell me a {thing}.", "Tell me about the {thing}.", "Write a {thing} about a {thing2}.", "Write me a {thing}.",
    "What is a {thing}?", "How does a {thing} work?", "Do you like {thing}?", "What do you think about {thing}?",
    "How much is a {thing}?", "Where can I buy a {thing}?", "Can you make a {thing}?", "Can you play {thing}?",
    "I have a {thing}.", "I like my {thing}.", "My {thing} is old.", "Why is the {thing} so big?",
    "Why do {thing}s need {thing2}s?", "When was the {thing} invented?", "Who made the {thing}?",
    "Explain {thing} to me.", "Give me a recipe for {thing}.", "What is the best {thing}?", "How old is the {thing}?",
    "Is the {thing} better than the {thing2}?", "What color is the {thing}?", "Where is the {thing}?",
    "Is there a {thing}?", "How many {thing}s are there?", "Do you see a {thing}?", "What is the {thing} doing?",
    "Can you see the {thing}?", "Which {thing} do you like?", "Translate {thing} into French.",
    "How do you spell {thing}?", "What rhymes with {thing}?", "Who won the {thing}?", "What happened to the {thing}?",
    "Let us talk about {thing}s.", "What is {digit} plus {digit2}?", "What is {digit} times {digit2}?",
    "{digit} + {digit2}", "What year is it?", "What time is it?", "What day is today?", "How old are you?",
    "Where do you live?", "Do you sleep?", "Are you happy?", "What do you eat?", "Do you love me?", "I am hungry.",
    "I am tired.", "It is raining.", "I feel sad today.", "What should I do?", "Why?", "When?",
    "What is the meaning of life?", "Can you help me with my homework?", "Sing a song.",
    "Is it going to rain tomorrow?", "Write some Python code.", "What is love?", "Who was Albert Einstein?",
    "Solve this equation.", "Play some music.", "Which company made you?", "Tell me something.",
    "Say something funny.", "What is two plus two?", "Open the {thing}.", "{thing}", "{thing} {thing2}",
    "The {thing} is on the {thing2}.", "{junk}", "{junk} {thing}", "What is {junk}?", "Do you know {junk}?",
    "Who is {junk}?", "How do I cook {thing}?", "Should I buy a {thing} or a {thing2}?", "My friend lives in {land}.",
    "Where did the {thing} go?", "I want a {thing}.", "Turn on the {thing}.", "Can a {thing} swim?",
    "Is this a {thing}?", "Is it a {thing} or a {thing2}?", "Does the {thing} have a {thing2}?", "Read the {thing}.",
)  # fmt: skip
