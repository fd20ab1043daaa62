"""What the steps do, behind thin scripts that parse arguments, call these files, and print a short summary.

In the order of the pipeline:
partition: the images of each domain. trained_alpha: task 1. importance: task 2. hardware_table: step 1, the table.
unpruned: step 2, γ and λ without pruning. joint: step 3, the joint search. sequential: the baseline that prunes first
and splits afterwards. real_mode: steps through a connected client, and a measured stream.
shared_warnings: what is said once for all domains.
base_model: the base network, trained and measured (base_model_report); base_model_training: the recipe for the built-in
digits.
"""
