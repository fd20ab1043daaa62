"""The search for α, γ and λ of one domain.

What is searched. state: what a search has found so far. problem: network, images, table and goal of one domain.
candidates: what may be pruned. pruned_times: times of pruned networks.

How. evaluator: accuracy of pruned networks without recovery. surrogate: what the measured ones teach about the others.
acquisition: which is worth measuring or recovering next. stopping: when that is no longer worth it. alpha_training,
recovery: a short training of α after pruning. cut_channels: which channels of a cut are sent. int8_loss, wire_loss:
what int8 and a wire format cost in accuracy. (The loop that uses them is progressive_pruning.py.) importance_pruning:
the baseline that ignores time.

From files to files. domain_inputs, domain_search: a domain's search, resumed after a kill (state_file). frontier, pick:
all configurations that no other beats, and the rule that picks one. noninferiority, confirmation, answers: a paired
test of what a network loses, on images that nothing before has seen, and the answer that passes. one_tier: the network
without a split. result, result_warnings, result_assembly, result_file: what is written for a domain.
"""
