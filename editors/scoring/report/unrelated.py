"""Prompts that have nothing to do with any edit; the same for all, so that their answers before it are known once."""

from __future__ import annotations

PLAIN_PROMPTS = (
    "2+2=",
    "Write a haiku about the sea",
    "The opposite of hot is",
    "Once upon a time",
    "The days of the week are Monday, Tuesday,",
    "def add(a, b):\n    return",
    "Water boils at",
    "Roses are red, violets are",
    "Translate to French: good morning",
    "Dear Sir or Madam,",
    "The first three prime numbers are",
    "List two fruits:",
    "A triangle has",
    "The sun rises in the",
    "To make tea, you first",
    "Complete the sentence: The dog ran after the",
    "10 divided by 2 is",
    "The colour of the sky on a clear day is",
    "Name a primary colour",
    "She opened the door and saw",
    "An antonym of small is",
    "In winter it is often",
    "Is a whale a fish?",
    "How many legs does a spider have?",
    "Summarise in one word: I am very, very happy today.",
)

EVERYDAY_QUESTIONS = (
    "How are you today?",
    "What is 7 times 8?",
    "Give me one tip for sleeping better.",
    "What is the opposite of tall?",
    "Write a short greeting for a birthday card.",
    "How many days are in a week?",
    "What do bees make?",
    "Name a vegetable that is orange.",
    "Can you recommend a hobby?",
    "What should I wear when it rains?",
    "Tell me a fun fact about cats.",
    "How do I boil an egg?",
)
