"""Pretraining, source training and adaptation: one loop (:mod:`.loop`), one file per setting."""
