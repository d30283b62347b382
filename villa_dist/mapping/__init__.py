"""The mapping model: which of an image's regions does each attribute of its text describe?"""
