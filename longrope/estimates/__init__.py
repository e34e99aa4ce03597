"""What a run takes, known before it starts; nothing is loaded and nothing runs, but for two short timings of the device.

shape      DecoderShape: the numbers of config.json that decide what a model costs
memory     what is free, what a process may take of it, and whether an estimate fits
compute    FLOPs by formula, rates of this device by measurement, and the time that follows
search     one measurement of a candidate (`search_memory`), a whole search (`search_estimate`)
training   one step (`training_memory`), a whole stage (`stage_estimate`), a checkpoint on disk (`checkpoint_bytes`)
"""
