"""Model extraction: how well can a model be copied by asking it questions?"""
