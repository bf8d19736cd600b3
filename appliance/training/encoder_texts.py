"""The fixed texts over which an exported encoder is compared with the original. Changing them changes the record."""

from __future__ import annotations

TEXTS: tuple[str, ...] = (
    "",
    "Hi",
    "thanks, that worked!",
    "What is the capital of France?",
    "Translate 'good morning' into Japanese and explain the politeness levels.",
    "Write a haiku about a ship that has no internet connection.",
    "Summarise the following minutes of a meeting in three bullet points for an executive reader.",
    (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips "
        "did Natalia sell altogether in April and May?"
    ),
    (
        "A train leaves the station at 9:40 and travels at 72 km/h; a second one leaves at 10:10 at 96 km/h. When does "
        "the second train catch up with the first?"
    ),
    "Prove that the square root of 2 is irrational.",
    "Find the derivative of f(x) = x^3 * sin(2x) and evaluate it at x = pi/4.",
    "Let G be a finite group of order 15. Show that G is cyclic.",
    (
        "Which of the following is a characteristic of an oligopoly?\nA. Many small firms\nB. Interdependence\nC. A "
        "perfectly elastic demand curve\nD. Free entry\nAnswer:"
    ),
    (
        "The presence of which organelle distinguishes plant cells from animal cells?\nA. Nucleus\nB. Ribosome\n"
        "C. Chloroplast\nD. Mitochondrion\nAnswer:"
    ),
    (
        "Statement 1 | Every cyclic group is abelian. Statement 2 | Every abelian group is cyclic.\nA. True, True\n"
        "B. False, False\nC. True, False\nD. False, True\nAnswer:"
    ),
    "def fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    "Write a Python function that checks whether a string is a palindrome, ignoring punctuation and case.",
    "SELECT c.name, COUNT(*) FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.name;",
    'Why does this Rust code not compile?\nlet s = String::from("a"); let t = s; println!("{}", s);',
    "kubectl get pods returns CrashLoopBackOff for the payment service; which logs do I read first?",
    'Convert this JSON into YAML: {"name": "router", "replicas": 3, "ports": [80, 443]}',
    "Explain the difference between symmetric and asymmetric encryption to a ten-year-old.",
    "Draft a polite e-mail that declines an invitation to a conference because of a conflicting deadline.",
    "What are the contraindications of ibuprofen in patients with chronic kidney disease?",
    "Under the doctrine of promissory estoppel, when is a promise without consideration enforceable?",
    "Who wrote The Brothers Karamazov, and what is the Grand Inquisitor about?",
    "List the steps of the Krebs cycle and name the enzyme of each.",
    "Compare Kant's categorical imperative with utilitarianism in the case of the trolley problem.",
    "Plan a vegetarian dinner for six people, one of whom is allergic to nuts.",
    "Classify the sentiment of this review as positive, negative or neutral: the battery died after two days.",
    "Extract all dates from the text: the contract of 3 May 2021 was extended on 2022-11-30 until the end of 2025.",
    "Our quarterly revenue rose from 4.2 to 5.1 million while costs grew by 12 %. By how much did the margin change?",
    "Erkläre den Unterschied zwischen Netto- und Bruttogehalt in zwei Sätzen.",
    "Quelle est la différence entre le passé composé et l'imparfait ?",
    "¿Cómo se calcula el área de un triángulo conociendo sus tres lados?",
    "请用一句话解释什么是机器学习。",
    "日本の首都はどこですか？",
    "Объясни, почему небо голубое.",
    "ما هي عاصمة مصر؟",
    "12 + 30 * (7 - 4) / 2 = ?",
    "0xDEADBEEF in decimal, please",
    (
        "Once upon a time, in a village at the edge of a forest, there lived a clockmaker who could repair all but "
        "her own watch. Continue the story in the same style for two paragraphs and end it with a question."
    ),
)
