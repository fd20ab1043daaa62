"""Results as pictures, tables and text.

style: what all pictures share. step2_result: what step 2 found, read back. cost_figures: pictures of the table and of
the splits. summary: all domains in numbers. result_figures: pictures of what step 3 found.
"""
