"""Counts the words of a text with Spark: the ten most frequent, and how many there are."""

import sys

from pyspark.sql import SparkSession

spark = SparkSession.builder.appName("wordcount").getOrCreate()
words = spark.sparkContext.textFile(sys.argv[1], minPartitions=4).flatMap(lambda line: line.lower().split())
counts = words.map(lambda word: (word, 1)).reduceByKey(lambda a, b: a + b).cache()
for word, count in counts.takeOrdered(10, key=lambda pair: (-pair[1], pair[0])):
    print(f"{count:6}  {word}")
print(f"{counts.values().sum()} words, {counts.count()} of them different")
spark.stop()
