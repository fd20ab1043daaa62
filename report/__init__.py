"""Results as pictures, tables and text.

style: what all pictures share. preparation_figures: partition, trained α, importance. cost_figures: the hardware table,
and the unpruned network at every split. measured: a stream beside its prediction. summary: all domains in numbers.
frontier_figures: accuracy over speed. result_figures: domains side by side, one domain block by block. client_rates:
frames a second by the number of clients. service_log: what a service did. pictures: everything that step 5 makes.
fleet_summary, fleet_figures: a plan.
"""
