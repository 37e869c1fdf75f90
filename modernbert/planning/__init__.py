"""What a training run costs: a cost model, device specifications, a forecast, and a search for model shapes."""
