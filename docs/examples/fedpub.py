"""FED-PUB: clients with subgraphs of one graph find out who is like them.

The data is the digits with links between neighbours, cut into communities, so it needs no
download; ``dataset=cora`` is the paper's. Writes ``similarity.png``.
"""

# %% Averaging everybody, and averaging those who are alike
import fedsim

COMMON = "dataset=digits_graph num_clients=5 clock.rounds_per_experience=8"
fedavg = fedsim.run(f"experiment=fedavg_cora_disjoint_5 {COMMON}")
fedpub = fedsim.run(f"experiment=fedpub_cora_disjoint_5 {COMMON}")
for run in (fedavg, fedpub):
    print(f"{run.config['name']}: {run.summary['test_accuracy']:.3f}")

# %% How the graph was cut
for client in fedpub.cut["graph"]["clients"]:
    print(f"client {client['client_id']}: {client['nodes']} nodes, {client['cut_edges']} links cut")

# %% Who the server takes to be like whom
for plot in fedpub.plot_pairs():
    plot.save(f"{plot.title.lower()}.png")
