"""From a run, an artifact or a file of factors to repositories on the Hub.

RUN_DIR, ARTIFACT, FACTORS.json ──subject──► Subject ──layout──► Draft … ──plan──► Plan ──execute──► repositories
                                    gate: bytes = validated bytes    ▲
                                                          Hub.look: what is there
"""
