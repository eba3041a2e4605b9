"""Membership inference: can it be told whether a record was in the training set?"""
