"""Federated adaptation and pretraining: labelled scans at one site, unlabelled ones at others; no scan leaves its site.

The round is engine-neutral: :mod:`.plan` is what all sites agree on, :mod:`.exchange` what crosses the network,
:mod:`.site` what a site does in a round, :mod:`.coordinator` what happens between rounds.
:mod:`.simulation` runs rounds in one process, ``flare_*`` over a network.
"""
