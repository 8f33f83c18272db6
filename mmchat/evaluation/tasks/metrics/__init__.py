"""Scores of named benchmarks, each equal to a public program, which its module names. No torch here.

vqa         VQA accuracy (VQAv2, TextVQA)          yes_no      the word that POPE and MME look for
choices     the letter of an answer                short       DocVQA, ChartQA, GQA, OCRBench
captions    CIDEr-D and BLEU of a corpus           ptb         the tokens that they count
"""
