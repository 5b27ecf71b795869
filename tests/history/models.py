from django.db import models


class Customer(models.Model):
    full_name = models.CharField(max_length=200, default="")


class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    label = models.CharField(max_length=200, default="")
