"""The commands of the rules, and those that users run by hand.

The SDK and transformers import PyTorch for those who use it, which takes a second. Most commands do
not, so that here it is imported when it is first used.
"""

from tinsmith.imports import defer_import

defer_import("torch")
