"""Finished nodes → results.parquet, summary.json, searches.json and samples.json.

measurements   what was measured of one model state
load           the measurements of a whole run, by defense and attack
capability     capability C, on items that several models answered
intervals      Wilson's interval of rates, and the bootstrap
undecided      responses on which the judge could not decide
mean_score     mean scores of a judge that grades responses
outcomes       harmful execution and reduction
attack_cost    steps that an attack needs
frontier       checkpoints of searches: the attacker's choice, the Pareto frontier
usable_harm    U(ε)
price          what a defense costs before any attack
summary        all of these → summary.json
searches       → searches.json
rows           → results.parquet
samples        → samples.json
"""
