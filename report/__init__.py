"""Results as pictures, tables and text.

style: what all pictures share. preparation_figures: partition, trained α, importance. cost_figures: the hardware table,
and the unpruned network at every split. measured: a stream beside its prediction. summary: all domains in numbers.
frontier_figures: accuracy over speed. result_figures: all domains side by side, one domain block by block. pictures:
everything that step 5 makes.
"""
