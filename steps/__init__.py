"""What steps 3 and 4 do for one domain, from its input files to its result file: the work of the engines' jobs.

joint: step 3, the joint search, alone or through a connected client. sequential: the baseline that prunes first and
splits afterwards.
"""
