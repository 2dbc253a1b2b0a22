"""What the experiments share: results files of many methods, and tables and figures of them."""
