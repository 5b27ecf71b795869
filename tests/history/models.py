from django.conf import settings
from django.db import models


class Customer(models.Model):
    full_name = models.CharField(max_length=200, default="")
    seller = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True)


class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    label = models.CharField(max_length=200, default="")
